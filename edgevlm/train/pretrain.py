"""Teach an encoder and its projector what Scenes knows of every patch, before a decoder learns to talk about it.

    python -m edgevlm.train.pretrain MODEL --out OUT --steps 3000      resumable

Ground truth of a generated picture is free: which thing, colour, letter and box each patch shows, and per image token
where things and letters have their centres. Linear heads read these from the patches and from the image tokens; the
heads are thrown away. Half of the pictures are of Scenes' own training split, half are crowded: more things, more
signs, so that a picture teaches more letters.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from edgevlm.commands.console import progress_bar
from edgevlm.errors import EdgeVLMError
from edgevlm.folders import check_replaceable, partial_folder, publish
from edgevlm.image_spec import ImageSpec
from edgevlm.preprocess import normalize, resize_and_split
from edgevlm.scenes.crowd import make_crowd
from edgevlm.scenes.generator import make_scene
from edgevlm.train.engine import Tell
from edgevlm.train.label_heads import Heads, Labels, Targets, Words, scene_labels, stack
from edgevlm.train.models import Source, open_source, save
from edgevlm.train.muon import MuonAdamW

U8 = npt.NDArray[np.uint8]
_LENGTH = 2.0
_TURN = 16  # batches that are drawn at once


@dataclass(frozen=True)
class PretrainOptions:
    model: str
    out: Path
    steps: int = 3000
    batch: int = 24  # pictures
    learning_rate: float = 1e-3
    fall: float = 0.4  # of the steps, over which the rate falls to nothing
    workers: int = 2  # processes that draw
    save_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.save_every) < 1 or self.workers < 0 or not 0 < self.fall <= 1:
            raise EdgeVLMError("Steps, batch and save-every are 1 or more, workers 0 or more, fall above 0 to 1.")

    def rate(self, step: int) -> float:
        left = (self.steps - step) / (self.fall * self.steps)
        return self.learning_rate * min(1.0, (step + 1) / 150, left)


@dataclass(frozen=True)
class Batches:
    """Batch by number, so that a run goes on exactly where it stopped."""

    image: ImageSpec
    side: int
    scale: int
    size: int
    seed: int
    split: Any = "train"

    def __call__(self, number: int) -> tuple[U8, list[Labels]]:
        tiles, labels = [], []
        for index in range(number * self.size, (number + 1) * self.size):
            crowded = self.split == "train" and index % 2
            scene = make_crowd(self.seed, index) if crowded else make_scene(self.split, self.seed, index)
            tiles.append(resize_and_split(np.asarray(scene.picture), self.image, max_tiles=1)[0][0])
            labels.append(scene_labels(scene, self.side, self.scale))
        return np.stack(tiles), labels

    def stream(self, start: int, end: int, workers: int) -> Iterator[tuple[U8, list[Labels]]]:
        """Drawn in turns with training: on a small machine, drawing beside it halves the speed of both."""
        if workers == 0:
            yield from map(self, range(start, end))
            return
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            for first in range(start, end, _TURN):
                yield from list(pool.map(self, range(first, min(first + _TURN, end))))


def encode(model: Any, tiles: U8, image: ImageSpec) -> tuple[Tensor, Tensor]:
    """uint8 (B, S, S, 3) to patches (B, P * P, W) and image tokens (B, G * G, D)."""
    pixels = torch.from_numpy(normalize(tiles, image))
    side = model.config.vision_config.image_size // model.config.vision_config.patch_size
    mask = torch.ones(len(pixels), side, side, dtype=torch.bool)
    patches = model.model.vision_model(pixel_values=pixels, patch_attention_mask=mask).last_hidden_state
    return patches, model.model.connector(patches)


class Pretraining:
    """Everything that a checkpoint holds."""

    def __init__(self, source: Source, options: PretrainOptions) -> None:
        torch.manual_seed(options.seed)
        self.options, self.image = options, source.image
        self.model = source.load()
        # On CPUs the fused kernel's backward pass takes a third longer.
        self.model.model.vision_model.config._attn_implementation = "eager"
        config = self.model.config
        self.heads = Heads(config.vision_config.hidden_size, config.text_config.hidden_size, config.scale_factor)
        self.words = Words(Tokenizer.from_file(str(source.folder / "tokenizer.json")), config.text_config.hidden_size)
        self.embeddings = self.model.get_input_embeddings().weight
        named = [
            *self.model.model.vision_model.named_parameters(),
            *self.model.model.connector.named_parameters(),
            *self.heads.named_parameters("lm_head"),
            *self.words.named_parameters("lm_head"),
            ("embed_tokens", self.embeddings),
        ]
        self.parameters = [p for _, p in named]
        self.optimizer = MuonAdamW(named, lr=0.0, weight_decay=0.02)
        self.step = 0

    @property
    def path(self) -> Path:
        return self.options.out.with_name(self.options.out.name + ".part") / "state.pt"

    def advance(self, tiles: U8, target: Targets) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.rate(self.step)
        with torch.autocast("cpu", torch.bfloat16):
            patches, tokens = encode(self.model, tiles, self.image)
            losses = self.heads.losses(patches, tokens, target)
        losses |= self.words.losses(tokens, self.embeddings, target)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "words": self.words.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        torch.save(state, self.path.with_suffix(".new"))
        os.replace(self.path.with_suffix(".new"), self.path)

    def resume(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.words.load_state_dict(state["words"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    @torch.no_grad()
    def fit_to_words(self, tiles: U8) -> None:
        """Scale the projector so that image tokens are _LENGTH times as long as words: a decoder's layers add little to
        a token that is many times longer than what they put out."""
        tokens = encode(self.model, tiles, self.image)[1]
        ratio = _LENGTH * self.embeddings.norm(dim=-1).mean() / tokens.float().norm(dim=-1).mean()
        for weight in self.model.model.connector.parameters():
            weight.mul_(ratio)


def pretrain(options: PretrainOptions, tell: Tell) -> Path:
    """Train vision and projector of `options.model` on labels; the new model's folder."""
    check_replaceable(options.out, False, "config.json", "checkpoint")
    source = open_source(options.model)
    training = Pretraining(source, options)
    training.path.parent.mkdir(parents=True, exist_ok=True)
    if training.path.exists():
        training.resume()
    side = source.spec.vision.image_size // source.spec.vision.patch_size
    batches = Batches(source.image, side, training.model.config.scale_factor, options.batch, options.seed)
    held_out = Batches(source.image, side, training.model.config.scale_factor, 96, options.seed, "val")(0)
    truth = stack(held_out[1])
    log = training.path.with_name("log.jsonl")
    mean: dict[str, float] = {}
    for tiles, labels in batches.stream(training.step, options.steps, options.workers):
        for name, loss in training.advance(tiles, stack(labels)).items():
            mean[name] = 0.98 * mean.get(name, loss) + 0.02 * loss
        tell("labels", training.step, options.steps)
        if training.step % options.save_every == 0 or training.step == options.steps:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                patches, tokens = encode(training.model, held_out[0], source.image)
                right = training.heads.accuracy(patches, tokens, truth)
                right |= training.words.accuracy(tokens, training.embeddings, truth)
            line = {"step": training.step} | {f"{k} right": round(v, 4) for k, v in right.items()}
            with log.open("a") as out:
                out.write(json.dumps(line | {k: round(v, 4) for k, v in mean.items()}) + "\n")
            training.save()
    training.fit_to_words(held_out[0])
    with partial_folder(options.out) as partial:
        save(training.model, source, partial, base=options.model, dtype=torch.float32)
        shutil.copyfile(log, partial / "labels.jsonl")
        publish(partial, options.out)
    shutil.rmtree(training.path.parent)
    return options.out


def main(arguments: list[str] | None = None) -> int:
    defaults = PretrainOptions("", Path())
    parser = argparse.ArgumentParser(prog="python -m edgevlm.train.pretrain", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    for name in ("steps", "batch", "learning_rate", "fall", "workers", "save_every", "seed"):
        value = getattr(defaults, name)
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value, help=f"default {value}")
    parser.add_argument("--threads", type=int, default=2)
    given = vars(parser.parse_args(arguments))
    torch.set_num_threads(given.pop("threads"))
    with progress_bar() as progress:
        pretrain(PretrainOptions(**given), progress)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
