"""Train the default model: `python -m edgevlm.train.default --out DIR`; again, it goes on where it stopped.

1. Compose a fresh encoder and a fresh decoder.                          DIR/base
2. Labels per patch teach the encoder and the projector.                 DIR/seen
3. The decoder learns to answer, with labels for the names it reads.     DIR/named
4. Everything learns from questions, names and labels together.          DIR/both
5. What users train with goes on; half of the pictures come twice,        DIR/twice
   as stock llama.cpp shows them: as one tile and as an overview.
DIR/model is the last of these, stored in fp16.

With --larger, the teacher: what learnt in step 4 gets larger patches, and layers that begin as the identity, and goes
through steps 2 to 4 again, shorter. DIR/larger is that model.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from edgevlm.commands.console import note, progress_bar, run_module
from edgevlm.errors import EdgeVLMError
from edgevlm.files import change_json
from edgevlm.folders import partial_folder, publish
from edgevlm.scenes import write_scenes
from edgevlm.train.default_parts import Shape, build
from edgevlm.train.engine import Tell
from edgevlm.train.grow import grow
from edgevlm.train.models import open_source, quiet_transformers, save
from edgevlm.train.options import PARTS, TrainOptions
from edgevlm.train.pretrain import HEADS, PretrainOptions, pretrain
from edgevlm.train.run import train


@dataclass(frozen=True)
class Recipe:
    out: Path
    pictures: int = 1000  # that the verbs go on with, three rounds of questions each
    label_steps: int = 4900
    name_steps: int = 4500
    both_steps: int = 4500
    twice_steps: int = 100
    batch: int = 8  # pictures
    threads: int = 2
    larger_steps: int = 850  # on labels, and on everything; twice as many on names
    seed: int = 0
    larger: bool = False  # the teacher

    def __post_init__(self) -> None:
        if min(getattr(self, name) for name in NUMBERS if name != "seed") < 1:
            raise EdgeVLMError("Training was given a number below 1: pictures, steps, batch and threads are 1 or more.")


NUMBERS = (
    "pictures", "label_steps", "name_steps", "both_steps", "twice_steps", "larger_steps", "batch", "threads", "seed",
)  # fmt: skip
PREPROCESSOR = "preprocessor_config.json"
VISION_LAYERS, LAYERS, PATCH = 8, 8, 16  # of the teacher
Stage = tuple[str, str, str, int, int, float, float]  # stage, folder, start, steps, batch, rate, fall


def make(recipe: Recipe) -> Path:
    """Run every stage whose folder is not there yet; the model's folder."""
    out = recipe.out
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "base").exists():
        build(out / "base", Shape(), recipe.seed)
    with progress_bar() as progress:
        stages = (
            ("labels", "seen", "base", recipe.label_steps, 24, 1.5e-3, 0.4),
            ("names", "named", "seen", recipe.name_steps, recipe.batch, 2e-3, 1.0),
            ("both", "both", "named", recipe.both_steps, recipe.batch, 8e-4, 1.0),
        )
        _run(out, stages, recipe.seed, progress)
        if recipe.larger:
            return _larger(recipe, progress)
        data = out / "scenes"
        if not data.exists():
            write_scenes(data, "train", recipe.seed + 1, recipe.pictures, rounds=3, progress=progress)
        if not (out / "twice").exists():
            if not (out / "small").exists():
                longest_edge(out / "both", out / "small", Shape().tile)
            twice = TrainOptions(
                str(out / "small"), out=out / "twice", data=data, train=PARTS, learning_rate=1.5e-4, encoder_rate=0.2,
                tiled=0.5, steps=recipe.twice_steps, batch=recipe.batch, optimizer="muon", per_question=True,
                bf16=True, cpu=True, save_every=100, seed=recipe.seed,
            )  # fmt: skip
            train(twice, progress, note)
    if not (out / "model").exists():
        quiet_transformers()
        source = open_source(str(out / "twice"))
        with partial_folder(out / "model") as partial:
            save(source.load(), source, partial, base="", dtype=torch.float16)
            shutil.copyfile(out / "both" / PREPROCESSOR, partial / PREPROCESSOR)
            publish(partial, out / "model")
    return out / "model"


def _run(out: Path, stages: tuple[Stage, ...], seed: int, tell: Tell) -> None:
    for number, (stage, name, start, steps, batch, rate, fall) in enumerate(stages, seed):
        if not (out / name).exists():
            pretrain(PretrainOptions(str(out / start), out / name, stage, steps, batch, rate, fall, seed=number), tell)


def _larger(recipe: Recipe, tell: Tell) -> Path:
    out, steps = recipe.out, recipe.larger_steps
    if not (out / "grown" / HEADS).exists():
        shutil.rmtree(out / "grown", ignore_errors=True)
        grow(str(out / "both"), out / "grown", VISION_LAYERS, LAYERS, PATCH)
        shutil.copyfile(out / "both" / HEADS, out / "grown" / HEADS)
    stages = (
        ("labels", "larger-seen", "grown", steps, 24, 5e-4, 0.85),
        ("names", "larger-named", "larger-seen", 2 * steps, recipe.batch, 8e-4, 1.0),
        ("both", "larger", "larger-named", steps, recipe.batch, 4e-4, 1.0),
    )
    _run(out, stages, recipe.seed + len(stages), tell)  # other pictures than any stage before
    return out / "larger"


def longest_edge(model: Path, out: Path, pixels: int) -> None:
    """Copy a checkpoint, with another size of the pictures that are cut into tiles."""
    with partial_folder(out) as partial:
        shutil.copytree(model, partial, dirs_exist_ok=True)
        change_json(partial / PREPROCESSOR, {"size": {"longest_edge": pixels}})
        publish(partial, out)


def main(arguments: list[str] | None = None) -> int:
    defaults = Recipe(Path())
    parser = argparse.ArgumentParser(
        prog="python -m edgevlm.train.default",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True)
    for name in NUMBERS:
        value = getattr(defaults, name)
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value, help=f"default {value}")
    parser.add_argument("--larger", action="store_true", help="the teacher: the same, grown")
    recipe = Recipe(**vars(parser.parse_args(arguments)))
    torch.set_num_threads(recipe.threads)
    return run_module(lambda: make(recipe))


if __name__ == "__main__":
    raise SystemExit(main())
