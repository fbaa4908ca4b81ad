"""Teach a model the ground truth of Scenes' pictures, in stages, before `edgevlm train` continues with it.

    python -m edgevlm.train.shipped.pretrain MODEL --out SEEN --steps 4900                             resumable
    python -m edgevlm.train.shipped.pretrain SEEN --out READ --stage signs --steps 2000
    python -m edgevlm.train.shipped.pretrain READ --out NAMED --stage names --steps 4500
    python -m edgevlm.train.shipped.pretrain NAMED --out BOTH --stage both --steps 4500

labels: the ground truth of a generated picture is free. Linear heads read which thing, colour, letter and box an
encoder's patches and its projector's image tokens show. Half of the pictures are from Scenes' training split, half are
crowded: more things and more signs, so that one picture teaches more letters.

signs: labels again, on pictures that are mostly signs, in the words that the decoder knows already.

names: the decoder learns Scenes' questions; encoder and projector are frozen. Each question has the weight of its
skill, whatever the length of its answer. Where a text names a thing, a hidden state at half the depth learns the
thing's box, or its word; where that word is spelled, its next letters. Drills ask one kind of
question about more pictures.

both: encoder, projector and decoder learn from questions, names and labels together.

The heads are discarded at the end; between the stages they are in the model's folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
from contextlib import suppress
from pathlib import Path

import torch

from edgevlm.errors import EdgeVLMError
from edgevlm.io.console import progress_bar
from edgevlm.io.folders import Replacement, replacing
from edgevlm.io.listing import CHECKPOINT
from edgevlm.io.program import run_module
from edgevlm.train.models import open_source, save
from edgevlm.train.shipped.batches import HELD_OUT, stream
from edgevlm.train.shipped.heads import stack
from edgevlm.train.shipped.stages import HEADS, STAGES, PretrainOptions
from edgevlm.types import Progress

_HELD_OUT = 96  # pictures


def pretrain(options: PretrainOptions, progress: Progress) -> Path:
    """Train `options.model` for one stage; return the new model's folder."""
    with replacing(options.out, CHECKPOINT) as output:
        _pretrain(options, output, progress)
    return options.out


def _pretrain(options: PretrainOptions, output: Replacement, progress: Progress) -> None:
    source = open_source(options.model)
    training = STAGES[options.stage](source, options)
    training.path.parent.mkdir(parents=True, exist_ok=True)
    if training.path.exists():
        training.resume()
    tiles, labels = training.pictures(_HELD_OUT, HELD_OUT)(0)
    target = stack(labels)
    log = training.path.with_name("log.jsonl")
    mean: dict[str, float] = {}
    for batch in stream(training.batches(), training.step, options.steps, options.workers):
        for name, loss in training.advance(batch).items():
            mean[name] = 0.98 * mean.get(name, loss) + 0.02 * loss
        progress(options.stage, training.step, options.steps)
        if training.step % options.save_every == 0 or training.step == options.steps:
            right = training.accuracy(tiles, target) if "vision" in training.parts else {}
            line = {"step": training.step} | {f"{k} right": round(v, 4) for k, v in right.items()}
            with log.open("a", encoding="utf-8", newline="\n") as out:
                out.write(json.dumps(line | {k: round(v, 4) for k, v in mean.items()}) + "\n")
            training.save()
    if options.stage == "labels":  # in later stages the decoder has learnt the tokens' scale
        training.scale_tokens(tiles)
    save(training.model, source, output.new, base=options.model, dtype=torch.float32)
    torch.save(training.head_state(), output.new / HEADS)
    shutil.copyfile(log, output.new / f"{options.stage}.jsonl")
    output.publish()
    for path in (training.path, log):
        path.unlink()
    with suppress(OSError):  # what else is there is not this run's
        log.parent.rmdir()


def main(arguments: list[str] | None = None) -> int:
    defaults = PretrainOptions("", Path())
    parser = argparse.ArgumentParser(prog="python -m edgevlm.train.shipped.pretrain", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", choices=tuple(STAGES), default=defaults.stage, help=f"default {defaults.stage}")
    for name in ("steps", "batch", "drills", "learning_rate", "fall", "workers", "save_every", "seed"):
        value = getattr(defaults, name)
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value, help=f"default {value}")
    parser.add_argument("--threads", type=int, default=2)
    given = vars(parser.parse_args(arguments))

    def run() -> Path:
        if (threads := given.pop("threads")) < 1:
            raise EdgeVLMError(f"--threads is {threads}: give 1 or more.")
        torch.set_num_threads(threads)
        with progress_bar() as progress:
            return pretrain(PretrainOptions(**given), progress)

    return run_module(run)


if __name__ == "__main__":
    raise SystemExit(main())
