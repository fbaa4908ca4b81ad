"""Teach a model what Scenes knows of its pictures, in two stages, before the verbs train it on.

    python -m edgevlm.train.pretrain MODEL --out SEEN --steps 3600                             resumable
    python -m edgevlm.train.pretrain SEEN --out NAMED --stage names --steps 3500

Labels: the ground truth of a generated picture is free. Linear heads read from an encoder's patches, and from the image
tokens of its projector, which thing, colour, letter and box they show. Half of the pictures are of Scenes' own training
split, half are crowded: more things, more signs, so that a picture teaches more letters.

Names: the decoder learns Scenes' questions with encoder and projector standing still, each question weighing the same
however long its answer; where a text names a thing, a hidden state half-way is to know the thing's box, or its word.

The heads are thrown away in the end; between the stages they lie in the model's folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from edgevlm.commands.console import progress_bar
from edgevlm.errors import EdgeVLMError
from edgevlm.folders import check_replaceable, partial_folder, publish
from edgevlm.image_spec import ImageSpec
from edgevlm.preprocess import normalize
from edgevlm.train.collate import Item
from edgevlm.train.engine import Tell
from edgevlm.train.examples import IGNORE
from edgevlm.train.label_batches import Asked, Pictures, Questions, stream
from edgevlm.train.label_heads import Heads, Targets, Words, stack
from edgevlm.train.models import Source, choose_trained, open_source, save
from edgevlm.train.muon import MuonAdamW
from edgevlm.train.named import Named, Names

U8 = npt.NDArray[np.uint8]
HEADS = "heads.pt"
STAGES = ("labels", "names")
_LENGTH = 2.0
_HELD_OUT = 96  # pictures
_CLIP = {"labels": 5.0, "names": 1.0}
# Embeddings of words that image tokens are written in must not run away from them.
_ADAMW = {"labels": 1.0, "names": 0.15}
_WEIGHTS = {"text": 3.0, "grounding": 2.0}  # of a question by its skill; else 1
_NAMES = 0.3


@dataclass(frozen=True)
class PretrainOptions:
    model: str
    out: Path
    stage: str = "labels"
    steps: int = 3000
    batch: int = 24  # pictures
    learning_rate: float = 1e-3
    fall: float = 0.4  # of the steps, over which the rate falls
    workers: int = 2  # processes that draw
    save_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise EdgeVLMError(f"There is no stage '{self.stage}': choose {' or '.join(STAGES)}.")
        if min(self.steps, self.batch, self.save_every) < 1 or self.workers < 0 or not 0 < self.fall <= 1:
            raise EdgeVLMError("Steps, batch and save-every are 1 or more, workers 0 or more, fall above 0 to 1.")

    def rate(self, step: int) -> float:
        left = (self.steps - step) / (self.fall * self.steps)
        return self.learning_rate * min(1.0, (step + 1) / 100, left)


def encode(model: Any, tiles: U8, image: ImageSpec) -> tuple[Tensor, Tensor]:
    """uint8 (B, S, S, 3) to patches (B, P * P, W) and image tokens (B, G * G, D)."""
    pixels = torch.from_numpy(normalize(tiles, image))
    side = model.config.vision_config.image_size // model.config.vision_config.patch_size
    mask = torch.ones(len(pixels), side, side, dtype=torch.bool)
    patches = model.model.vision_model(pixel_values=pixels, patch_attention_mask=mask).last_hidden_state
    return patches, model.model.connector(patches)


class Pretraining:
    """Everything that a checkpoint holds, and a step of the labels' stage."""

    parts: tuple[str, ...] = ("vision", "projector")

    def __init__(self, source: Source, options: PretrainOptions) -> None:
        torch.manual_seed(options.seed)
        self.source, self.options, self.image = source, options, source.image
        self.model = source.load()
        # On CPUs the fused kernel's backward pass takes a third longer.
        self.model.model.vision_model.config._attn_implementation = "eager"
        config = self.model.config
        self.side = config.vision_config.image_size // config.vision_config.patch_size
        self.tokenizer = Tokenizer.from_file(str(source.folder / "tokenizer.json"))
        self.heads = Heads(config.vision_config.hidden_size, config.text_config.hidden_size, config.scale_factor)
        self.words = Words(self.tokenizer, config.text_config.hidden_size)
        if (source.folder / HEADS).exists():
            self.load_heads(torch.load(source.folder / HEADS, weights_only=True))
        choose_trained(self.model, self.parts)
        self.embeddings = self.model.get_input_embeddings().weight.requires_grad_(True)
        free = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        heads = [*self.heads.named_parameters("lm_head"), *self.words.named_parameters("lm_head")]
        self.parameters = [p for _, p in (*free, *heads)]
        self.optimizer = MuonAdamW([*free, *heads], lr=0.0, weight_decay=0.02)
        self.step = 0

    @property
    def path(self) -> Path:
        return self.options.out.with_name(self.options.out.name + ".part") / "state.pt"

    def pictures(self, size: int, split: str = "train") -> Pictures:
        return Pictures(self.image, self.side, self.model.config.scale_factor, size, self.options.seed, split)

    def batches(self) -> Callable[[int], Any]:
        return self.pictures(self.options.batch)

    def losses(self, batch: Any) -> dict[str, Tensor]:
        tiles, labels = batch
        target = stack(labels)
        with torch.autocast("cpu", torch.bfloat16):
            patches, tokens = encode(self.model, tiles, self.image)
            losses = self.heads.losses(patches, tokens, target)
        return losses | self.words.losses(tokens, self.embeddings, target)

    def advance(self, batch: Any) -> dict[str, float]:
        rate, stage = self.options.rate(self.step), self.options.stage
        for group in self.optimizer.param_groups:
            group["lr"] = rate * (_ADAMW[stage] if group["kind"] == "adamw" else 1.0)
        losses = self.losses(batch)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([p for p in self.parameters if p.grad is not None], _CLIP[stage])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return {name: float(loss.detach()) for name, loss in losses.items()}

    @torch.no_grad()
    def accuracy(self, tiles: U8, target: Targets) -> dict[str, float]:
        with torch.autocast("cpu", torch.bfloat16):
            patches, tokens = encode(self.model, tiles, self.image)
            found = self.heads.accuracy(patches, tokens, target)
        return found | self.words.accuracy(tokens, self.embeddings, target)

    def save(self) -> None:
        state = self.head_state() | {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step,
        }  # fmt: skip
        torch.save(state, self.path.with_suffix(".new"))
        os.replace(self.path.with_suffix(".new"), self.path)

    def resume(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.load_heads(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def head_state(self) -> dict[str, Any]:
        return {"heads": self.heads.state_dict(), "words": self.words.state_dict()}

    def load_heads(self, state: dict[str, Any]) -> None:
        self.heads.load_state_dict(state["heads"])
        self.words.load_state_dict(state["words"])

    @torch.no_grad()
    def finish(self, tiles: U8) -> None:
        """Scale the projector so that image tokens are _LENGTH times as long as words: a decoder's layers add little to
        a token that is many times longer than what they put out."""
        tokens = encode(self.model, tiles, self.image)[1]
        ratio = _LENGTH * self.embeddings.norm(dim=-1).mean() / tokens.float().norm(dim=-1).mean()
        for weight in self.model.model.connector.parameters():
            weight.mul_(ratio)


class Naming(Pretraining):
    """A step of the names' stage."""

    parts = ("decoder",)

    def __init__(self, source: Source, options: PretrainOptions) -> None:
        super().__init__(source, options)
        self._names, self._collate = Names(self.tokenizer), source.collator()

    def batches(self) -> Callable[[int], Any]:
        options = self.options
        return Questions(options.model, self.side, self.model.config.scale_factor, options.batch, options.seed)

    def losses(self, batch: list[Asked]) -> dict[str, Tensor]:
        model = self.model
        inputs = self._collate([Item(n, (asked.example,)) for n, asked in enumerate(batch)])
        target = stack([asked.labels for asked in batch])
        ids, answers = inputs["input_ids"], torch.cat([_shares(asked) for asked in batch])
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                tokens = encode(model, np.concatenate([asked.example.tiles for asked in batch]), self.image)[1]
            embedded = model.get_input_embeddings()(ids)
            shown = (ids == model.config.image_token_id)[..., None]
            out = model.model.text_model(
                inputs_embeds=embedded.masked_scatter(shown, tokens.to(embedded.dtype)),
                attention_mask=inputs["attention_mask"], position_ids=inputs["position_ids"],
                output_hidden_states=True,
            )  # fmt: skip
            logits = model.lm_head(out.last_hidden_state[inputs["logits_to_keep"]])
        each = F.cross_entropy(logits.float(), inputs["labels"], reduction="none")
        losses = {"answers": (each * answers).sum() / answers.sum()}
        half = (len(out.hidden_states) - 1) // 2
        places = {"name": self._names.names(ids, target), "answer": self._names.answers(batch, target)}
        for depth, (what, named) in enumerate(places.items(), half):
            states = out.hidden_states[depth][named.row, named.column]
            losses |= {f"{what} {kind}": _NAMES * loss for kind, loss in self._known(states, named).items()}
        return losses

    def _known(self, states: Tensor, named: Named) -> dict[str, Tensor]:
        losses = {}
        if len(states):
            boxes = self.words.boxes(states, self.embeddings)
            losses["box"] = F.cross_entropy(boxes.flatten(0, 1), named.bins.flatten())
        if named.sign.any():
            letters = self.words.letters(states[named.sign], self.embeddings)
            losses["spelled"] = F.cross_entropy(letters.flatten(0, 1), named.spelled[named.sign].flatten())
        return losses

    def finish(self, tiles: U8) -> None:
        """Image tokens stay as the decoder knows them."""


def _shares(asked: Asked) -> Tensor:
    """A weight per answer token, by which a question weighs what its skill does however long the answer."""
    segments = torch.from_numpy(asked.example.segments[asked.example.targets != IGNORE])
    weights = torch.tensor([0.0, *(_WEIGHTS.get(skill, 1.0) for skill in asked.skills)])
    return weights[segments] / torch.bincount(segments)[segments]


def pretrain(options: PretrainOptions, tell: Tell) -> Path:
    """Train `options.model` by one stage; the new model's folder."""
    check_replaceable(options.out, False, "config.json", "checkpoint")
    source = open_source(options.model)
    training = (Naming if options.stage == "names" else Pretraining)(source, options)
    training.path.parent.mkdir(parents=True, exist_ok=True)
    if training.path.exists():
        training.resume()
    tiles, labels = training.pictures(_HELD_OUT, "val")(0)
    target = stack(labels)
    log = training.path.with_name("log.jsonl")
    mean: dict[str, float] = {}
    for batch in stream(training.batches(), training.step, options.steps, options.workers):
        for name, loss in training.advance(batch).items():
            mean[name] = 0.98 * mean.get(name, loss) + 0.02 * loss
        tell(options.stage, training.step, options.steps)
        if training.step % options.save_every == 0 or training.step == options.steps:
            right = training.accuracy(tiles, target) if options.stage == "labels" else {}
            line = {"step": training.step} | {f"{k} right": round(v, 4) for k, v in right.items()}
            with log.open("a") as out:
                out.write(json.dumps(line | {k: round(v, 4) for k, v in mean.items()}) + "\n")
            training.save()
    training.finish(tiles)
    with partial_folder(options.out) as partial:
        save(training.model, source, partial, base=options.model, dtype=torch.float32)
        torch.save(training.head_state(), partial / HEADS)
        shutil.copyfile(log, partial / f"{options.stage}.jsonl")
        publish(partial, options.out)
    shutil.rmtree(training.path.parent)
    return options.out


def main(arguments: list[str] | None = None) -> int:
    defaults = PretrainOptions("", Path())
    parser = argparse.ArgumentParser(prog="python -m edgevlm.train.pretrain", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", choices=STAGES, default=defaults.stage, help=f"default {defaults.stage}")
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
