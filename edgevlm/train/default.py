"""Train the default model: `python -m edgevlm.train.default --out DIR`; again, it goes on where it stopped.

1. Coarse labels teach the encoder, per patch and per image token, which shape and colour is there.
2. Sharp labels add exact outlines, and counts that come out right.
3. The decoder learns to answer questions about what the encoder gives it.
4. Everything goes on together; the encoder learns more slowly, still with its labels.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast, SmolVLMForConditionalGeneration

from edgevlm.errors import EdgeVLMError
from edgevlm.train.build import build_config, build_model, build_tokenizer, save
from edgevlm.train.card import write_card
from edgevlm.train.data import Batch, Batches
from edgevlm.train.evaluate_default import accuracy_table, evaluate
from edgevlm.train.network import LabelHeads, encode, label_loss, question_loss, score


@dataclass(frozen=True)
class TrainOptions:
    out: Path
    coarse_steps: int = 1600
    sharp_steps: int = 1200
    decoder_steps: int = 900
    joint_steps: int = 4200
    batch: int = 16  # pictures
    learning_rate: float = 1e-3
    encoder_share: float = 0.1  # of the learning rate, in stage 4
    label_weight: float = 0.3  # of the labels' loss, in stage 4
    ema: float = 0.997
    threads: int = 2
    workers: int = 1  # processes that draw scenes
    save_every: int = 100
    seed: int = 0
    test_scenes: int = 2000

    def __post_init__(self) -> None:
        sizes = (
            self.coarse_steps,
            self.sharp_steps,
            self.decoder_steps,
            self.joint_steps,
            self.batch,
            self.threads,
            self.test_scenes,
        )
        if min(sizes) < 1 or self.workers < 0:
            raise EdgeVLMError(
                "Training was given a size below 1: steps, batch, threads and scenes are 1 or more; raise it."
            )

    @property
    def label_steps(self) -> int:
        return self.coarse_steps + self.sharp_steps

    @property
    def steps(self) -> int:
        return self.label_steps + self.decoder_steps + self.joint_steps

    def rate(self, step: int) -> float:
        """Three times (coarse, sharp, questions): a warm-up, then constant, then down to a fiftieth.

        The way down is the last quarter of stage 1, the last two thirds of stage 2, and stage 4, there as a
        parabola: counting is learnt at small rates. Until it begins, a run may be given more steps.
        """
        power = 1
        if step < self.coarse_steps:
            first, end, fall = 0, self.coarse_steps, 0.25 * self.coarse_steps
        elif step < self.label_steps:
            first, end, fall = self.coarse_steps, self.label_steps, self.sharp_steps * 2 / 3
        else:
            first, end, fall, power = self.label_steps, self.steps, float(self.joint_steps), 2
        left = min(1.0, (end - step) / fall)
        return self.learning_rate * min(1.0, (step - first + 1) / 100) * (0.02 + 0.98 * left**power)


class _Stream(Dataset[Batch]):
    """Batch by step number; labels need no questions."""

    def __init__(self, options: TrainOptions, tokenizer: PreTrainedTokenizerFast) -> None:
        self.label_steps = options.label_steps
        self.plain = Batches(tokenizer, options.batch, with_questions=False)
        self.asked = Batches(tokenizer, options.batch)

    def __getitem__(self, step: int) -> Batch:
        torch.set_num_threads(1)
        return (self.plain if step < self.label_steps else self.asked).batch(step)


@dataclass
class Training:
    """Everything that one checkpoint holds."""

    options: TrainOptions
    model: SmolVLMForConditionalGeneration
    heads: LabelHeads
    step: int = 0
    seconds: float = 0.0
    average: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        encoder = [
            *self.model.model.vision_model.parameters(),
            *self.model.model.connector.parameters(),
            *self.heads.parameters(),
        ]
        known = {id(p) for p in encoder}
        decoder = [p for p in self.model.parameters() if id(p) not in known]
        self.optimizer = torch.optim.AdamW(
            [{"params": encoder}, {"params": decoder}],
            lr=self.options.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
            weight_decay=0.02,
        )

    @property
    def path(self) -> Path:
        return self.options.out / "state.pt"

    def advance(self, batch: Batch) -> float:
        """One optimizer step; the loss."""
        options, asking = self.options, self.step >= self.options.label_steps
        joint = self.step >= options.label_steps + options.decoder_steps
        rate = options.rate(self.step)
        encoder, decoder = self.optimizer.param_groups
        encoder["lr"], decoder["lr"] = rate * (options.encoder_share if asking else 1.0), rate
        with torch.autocast("cpu", torch.bfloat16):
            loss = (
                question_loss(self.model, self.heads, batch, options.label_weight if joint else 0.0)
                if asking
                else label_loss(self.model, self.heads, batch, sharp=self.step >= options.coarse_steps)
            )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if asking:
            self._follow()
        return float(loss.detach())

    @torch.no_grad()
    def _follow(self) -> None:
        """Exponential moving average of the weights: what is shipped."""
        current = list(self.model.parameters())
        if not self.average:
            self.average = [p.detach().clone() for p in current]
        done = self.step - self.options.label_steps
        weight = 1 - min(self.options.ema, (1 + done) / (10 + done))
        torch._foreach_lerp_(self.average, [p.detach() for p in current], weight)

    @torch.no_grad()
    def use_average(self) -> None:
        for parameter, mean in zip(self.model.parameters(), self.average, strict=True):
            parameter.copy_(mean)

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
            "seconds": self.seconds,
            "plan": self.plan,
        }
        beside = self.path.with_suffix(".part")
        torch.save(state, beside)
        os.replace(beside, self.path)

    def resume(self) -> None:
        state = torch.load(self.path, weights_only=True)
        if state["plan"] != self.plan:
            raise EdgeVLMError(
                f"{self.path} was begun with coarse steps, batch and seed {state['plan']}, "
                f"now asked for {self.plan}: "
                "give the same numbers, or another --out."
            )
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step, self.seconds = state["average"], state["step"], state["seconds"]

    @property
    def plan(self) -> list[int]:
        options = self.options
        return [options.coarse_steps, options.batch, options.seed]


def begin(options: TrainOptions) -> tuple[Training, PreTrainedTokenizerFast]:
    """A fresh training, or the one that `options.out` holds."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    tokenizer = build_tokenizer()
    model = build_model(build_config(tokenizer))
    for part in (model.model.vision_model, model.model.text_model):
        part.config._attn_implementation = "eager"  # on CPUs the fused kernel's backward pass takes a third longer
    training = Training(
        options,
        model,
        LabelHeads(model.config.vision_config.hidden_size, model.config.text_config.hidden_size),
    )
    if training.path.exists():
        training.resume()
    return training, tokenizer


def validate(training: Training, tokenizer: PreTrainedTokenizerFast, scenes: int = 128) -> dict[str, float]:
    """Accuracies on validation scenes, with the current weights."""
    batches = Batches(tokenizer, 64, split="validation")
    asking = training.step > training.options.label_steps
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        if not asking:
            batch = batches.batch(0)
            return {
                "counted": training.heads.accuracy(
                    encode(training.model, torch.from_numpy(batch.pixels)[:, -1])[1], batch
                )
            }
        rows = [row for n in range(scenes // 64) for row in score(training.model, batches.batch(n))]
    skills = sorted({skill for skill, _, _ in rows})
    return {s: round(sum(r for k, _, r in rows if k == s) / sum(k == s for k, _, _ in rows), 4) for s in skills}


def train(options: TrainOptions, console: Console) -> dict[str, Any]:
    """Train, save to `options.out / "model"`, measure, write the card; the measured figures."""
    options.out.mkdir(parents=True, exist_ok=True)
    training, tokenizer = begin(options)
    log = options.out / "train.log"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    loader = DataLoader(
        _Stream(options, tokenizer),
        batch_size=None,
        sampler=range(training.step, options.steps),
        num_workers=options.workers,
        prefetch_factor=6 if options.workers else None,
    )
    mark, running = time.monotonic(), 0.0
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=options.steps, completed=training.step)
        for batch in loader:
            loss = training.advance(batch)
            running = loss if running == 0 else 0.97 * running + 0.03 * loss
            progress.update(task, completed=training.step, description=f"loss {running:.3f}")
            last = training.step in (options.coarse_steps, options.label_steps, options.steps)
            if training.step % options.save_every == 0 or last:
                training.seconds += time.monotonic() - mark
                line = {"step": training.step, "seconds": round(training.seconds), "loss": round(running, 4)}
                with log.open("a") as out:
                    out.write(json.dumps(line | validate(training, tokenizer)) + "\n")
                training.save()
                mark = time.monotonic()
    training.use_average()
    folder = options.out / "model"
    save(folder, training.model, tokenizer)
    figures = evaluate(folder, options.test_scenes)
    names = ("coarse_steps", "sharp_steps", "decoder_steps", "joint_steps", "batch", "threads")
    figures["training"] = {n: getattr(options, n) for n in names} | {"seconds": round(training.seconds)}
    write_card(folder, figures)
    console.print(accuracy_table(figures))
    return figures


def main(arguments: list[str] | None = None) -> int:
    defaults = TrainOptions(Path())
    parser = argparse.ArgumentParser(prog="python -m edgevlm.train.default", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, log and, in model/, the trained model")
    for name in (
        "coarse_steps",
        "sharp_steps",
        "decoder_steps",
        "joint_steps",
        "batch",
        "threads",
        "workers",
        "seed",
        "test_scenes",
    ):
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=int, default=getattr(defaults, name), help=f"default {getattr(defaults, name)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the drawing process ends too
    try:
        train(TrainOptions(**vars(parser.parse_args(arguments))), Console(stderr=True))
    except EdgeVLMError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
