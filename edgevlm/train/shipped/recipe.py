"""Train the default model: `python -m edgevlm.train.shipped.recipe --out DIR`; run it again to resume.

1. Compose a fresh encoder and a fresh decoder.                         DIR/base
2. Labels per patch teach the encoder and the projector.                DIR/seen
3. The decoder learns to answer, with labels for the names it reads.    DIR/named
4. All parts learn from questions, names and labels together.           DIR/both
5. The patches grow, and layers that begin as the identity are added.   DIR/grown
6. Labels of pictures that are mostly signs; then steps 3 and 4 again.  DIR/read, DIR/said, DIR/whole
7. `edgevlm train` on generated pictures; half of them come twice,      DIR/twice
   as one tile and as an overview, as stock llama.cpp shows them.
8. Distillation teaches the int4 model the float model's answers.       DIR/aware
DIR/model is the last of these, stored in fp16.

--larger trains the teacher: the model of step 6 with a deeper decoder, then stages `names` and `both` again, into
DIR/larger.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from edgevlm.errors import EdgeVLMError
from edgevlm.io.console import note, progress_bar
from edgevlm.io.files import change_json
from edgevlm.io.folders import replacing
from edgevlm.io.listing import CHECKPOINT
from edgevlm.io.options import check_types
from edgevlm.io.program import run_module
from edgevlm.scenes import write_scenes
from edgevlm.train.distill import distill
from edgevlm.train.models import open_source, quiet_transformers, save
from edgevlm.train.options import PARTS, DistillOptions, TrainOptions
from edgevlm.train.run import train
from edgevlm.train.shipped.grow import grow
from edgevlm.train.shipped.parts import Shape, build
from edgevlm.train.shipped.pretrain import pretrain
from edgevlm.train.shipped.stages import HEADS, PretrainOptions
from edgevlm.types import Progress


@dataclass(frozen=True)
class Recipe:
    out: Path
    pictures: int = 1000  # of steps 7 and 8, three rounds of questions each
    label_steps: int = 4900
    name_steps: int = 4500
    both_steps: int = 4500
    sign_steps: int = 2000
    said_steps: int = 4500  # of stage `names` in step 6
    whole_steps: int = 400  # of stage `both` in step 6
    twice_steps: int = 100
    aware_steps: int = 350
    batch: int = 8  # pictures of a step
    labelled: int = 24  # pictures of a step on labels
    drills: int = 32  # pictures of a step that asks for one thing alone
    threads: int = 2
    seed: int = 0
    larger: bool = False  # the teacher

    def __post_init__(self) -> None:
        check_types(self)
        if min(getattr(self, name) for name in NUMBERS if name != "seed") < 1:
            raise EdgeVLMError("Training was given a number below 1: pictures, steps, batch and threads are 1 or more.")


class Stage(NamedTuple):
    name: str  # its folder
    start: str
    kind: str
    steps: str  # the recipe's number
    rate: float
    fall: float = 1.0
    drills: bool = False


NUMBERS = (
    "pictures", "label_steps", "name_steps", "both_steps", "sign_steps", "said_steps", "whole_steps",
    "twice_steps", "aware_steps", "batch", "labelled", "drills", "threads", "seed",
)  # fmt: skip
PREPROCESSOR = "preprocessor_config.json"
VISION_LAYERS, LAYERS, PATCH = 8, 6, 16  # grown
TEACHER_LAYERS = 10  # of its decoder
FIRST = (
    Stage("seen", "base", "labels", "label_steps", 1.5e-3, 0.4),
    Stage("named", "seen", "names", "name_steps", 2e-3),
    Stage("both", "named", "both", "both_steps", 8e-4),
)
AGAIN = (
    Stage("read", "grown", "signs", "sign_steps", 6e-4, 0.9),
    Stage("said", "read", "names", "said_steps", 1e-3, drills=True),
    Stage("whole", "said", "both", "whole_steps", 4e-4, drills=True),
)
DEEPER = (
    Stage("larger-said", "deeper", "names", "said_steps", 1e-3, drills=True),
    Stage("larger", "larger-said", "both", "whole_steps", 4e-4, drills=True),
)
STAGES = FIRST + AGAIN + DEEPER  # each has a seed of its own


def make(recipe: Recipe) -> Path:
    """Run every stage whose folder is not there yet; the model's folder."""
    out = recipe.out
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "base").exists():
        build(out / "base", Shape(), recipe.seed)
    with progress_bar() as progress:
        _run(recipe, progress, FIRST)
        _grow(out, "both", "grown", VISION_LAYERS, LAYERS, PATCH)
        _run(recipe, progress, AGAIN)
        if recipe.larger:
            _grow(out, "whole", "deeper", None, TEACHER_LAYERS, None)
            _run(recipe, progress, DEEPER)
            return out / "larger"
        data = out / "scenes"
        if not data.exists():
            write_scenes(data, "train", recipe.seed + 1, recipe.pictures, rounds=3, progress=progress)
        if not (out / "twice").exists():
            if not (out / "small").exists():
                longest_edge(out / "whole", out / "small", Shape().tile // Shape().patch * PATCH)
            twice = TrainOptions(
                str(out / "small"),
                out=out / "twice",
                data=data,
                train=PARTS,
                learning_rate=1.5e-4,
                encoder_rate=0.2,
                tiled=0.5,
                steps=recipe.twice_steps,
                batch=recipe.batch,
                optimizer="muon",
                per_question=True,
                bf16=True,
                cpu=True,
                save_every=100,
                seed=recipe.seed,
            )
            train(twice, progress, note)
        if not (out / "aware").exists():
            aware = DistillOptions(
                str(out / "twice"),
                out=out / "aware",
                data=data,
                train=PARTS,
                teacher=str(out / "twice"),
                quantize="int4",
                learning_rate=5e-5,
                cross_entropy=0.5,
                steps=recipe.aware_steps,
                batch=recipe.batch,
                per_question=True,
                bf16=True,
                cpu=True,
                save_every=100,
                seed=recipe.seed,
            )
            distill(aware, progress, note)
    if not (out / "model").exists():
        quiet_transformers()
        source = open_source(str(out / "aware"))
        with replacing(out / "model", CHECKPOINT) as output:
            save(source.load(), source, output.new, base="", dtype=torch.float16)
            shutil.copyfile(out / "whole" / PREPROCESSOR, output.new / PREPROCESSOR)
            output.publish()
    return out / "model"


def _run(recipe: Recipe, progress: Progress, stages: tuple[Stage, ...]) -> None:
    for seed, stage in enumerate(stages, recipe.seed + STAGES.index(stages[0])):
        if (recipe.out / stage.name).exists():
            continue
        labels = stage.kind in ("labels", "signs")
        options = PretrainOptions(
            str(recipe.out / stage.start),
            recipe.out / stage.name,
            stage.kind,
            steps=getattr(recipe, stage.steps),
            batch=recipe.labelled if labels else recipe.batch,
            drills=recipe.drills if stage.drills else 0,
            learning_rate=stage.rate,
            fall=stage.fall,
            seed=seed,
        )
        pretrain(options, progress)


def _grow(out: Path, start: str, name: str, vision_layers: int | None, layers: int | None, patch: int | None) -> None:
    if not (out / name).exists():
        grow(str(out / start), out / name, vision_layers, layers, patch, heads=out / start / HEADS)


def longest_edge(model: Path, out: Path, pixels: int) -> None:
    """Copy a checkpoint, with another size of the pictures that are cut into tiles."""
    with replacing(out, CHECKPOINT) as output:
        shutil.copytree(model, output.new, dirs_exist_ok=True)
        change_json(output.new / PREPROCESSOR, {"size": {"longest_edge": pixels}})
        output.publish()


def main(arguments: list[str] | None = None) -> int:
    defaults = Recipe(Path())
    parser = argparse.ArgumentParser(
        prog="python -m edgevlm.train.shipped.recipe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True)
    for name in NUMBERS:
        value = getattr(defaults, name)
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value, help=f"default {value}")
    parser.add_argument("--larger", action="store_true", help="the teacher: the same, grown")
    given = vars(parser.parse_args(arguments))

    def run() -> Path:
        recipe = Recipe(**given)
        torch.set_num_threads(recipe.threads)
        return make(recipe)

    return run_module(run)


if __name__ == "__main__":
    raise SystemExit(main())
