"""Teach a model what Scenes knows of its pictures, by stages, before the verbs train it on.

    python -m edgevlm.train.shipped.pretrain MODEL --out SEEN --steps 4900                             resumable
    python -m edgevlm.train.shipped.pretrain SEEN --out READ --stage signs --steps 2000
    python -m edgevlm.train.shipped.pretrain READ --out NAMED --stage names --steps 4500
    python -m edgevlm.train.shipped.pretrain NAMED --out BOTH --stage both --steps 4500

Labels: the ground truth of a generated picture is free. Linear heads read from an encoder's patches, and from the image
tokens of its projector, which thing, colour, letter and box they show. Half of the pictures are of Scenes' own training
split, half are crowded: more things, more signs, so that a picture teaches more letters.

Signs: labels again, of pictures that are mostly signs, in the words that a decoder knows already.

Names: the decoder learns Scenes' questions with encoder and projector standing still, each question weighing the same
however long its answer; where a text names a thing, a hidden state half-way is to know the thing's box, or its word,
and where that word is said, its next letters. Drills ask for one thing alone of more pictures.

Both: encoder, projector and decoder learn from questions, names and labels together.

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
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.preprocess import normalize_all
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io.console import progress_bar
from edgevlm.io.folders import check_replaceable, partial_folder, publish
from edgevlm.train.collate import Item
from edgevlm.train.examples import IGNORE
from edgevlm.train.models import Source, choose_trained, open_source, part_of, save
from edgevlm.train.muon import MuonAdamW
from edgevlm.train.shipped.batches import CROWDED, HELD_OUT, WRITTEN, Asked, Maker, Pictures, Questions, stream
from edgevlm.train.shipped.heads import Heads, Targets, Words, stack
from edgevlm.train.shipped.named import Named, Names
from edgevlm.types import U8, Progress

HEADS = "heads.pt"
STAGES = ("labels", "signs", "names", "both")
_LENGTH = 2.0
_HELD_OUT = 96  # pictures
# Embeddings of words that image tokens are written in must not run away from them.
_EMBEDDINGS = 0.15  # of the decoder's rate
_SKILLS = {"text": 4.0, "grounding": 2.0, "count": 3.0, "caption": 3.0}  # weights of questions; else 1
_READING = {"characters": 3.0, "spelled": 4.0, "words": 2.0}  # weights of labels where signs are read; else 1
_NAMES, _LABELS = 0.3, 0.5  # weights of losses beside the answers' when a decoder learns


@dataclass(frozen=True)
class PretrainOptions:
    model: str
    out: Path
    stage: str = "labels"
    steps: int = 3000
    batch: int = 24  # pictures
    drills: int = 0  # pictures of every other batch that asks: of a sign's text alone, or of counts alone
    learning_rate: float = 1e-3
    fall: float = 0.4  # of the steps, over which the rate falls
    workers: int = 2  # processes that draw
    save_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise EdgeVLMError(f"There is no stage '{self.stage}': choose {' or '.join(STAGES)}.")
        known = min(self.steps, self.batch, self.save_every) > 0 and min(self.workers, self.drills) >= 0
        if not known or not 0 < self.fall <= 1:
            raise EdgeVLMError(
                "Steps, batch and save-every are 1 or more, workers and drills 0 or more, fall above 0 to 1."
            )

    def rate(self, step: int) -> float:
        left = (self.steps - step) / (self.fall * self.steps)
        return self.learning_rate * min(1.0, (step + 1) / 100, left)


def encode(model: Any, tiles: U8, image: ImageSpec) -> tuple[Tensor, Tensor]:
    """uint8 (B, S, S, 3) to patches (B, P * P, W) and image tokens (B, G * G, D)."""
    pixels = torch.from_numpy(normalize_all(list(tiles), image))
    side = model.config.vision_config.image_size // model.config.vision_config.patch_size
    mask = torch.ones(len(pixels), side, side, dtype=torch.bool)
    patches = model.model.vision_model(pixel_values=pixels, patch_attention_mask=mask).last_hidden_state
    return patches, model.model.connector(patches)


class Pretraining:
    """Everything that a checkpoint holds, and a step of the labels' stage."""

    parts: tuple[str, ...] = ("vision", "projector")
    mix = CROWDED
    learns_words = True
    share = 1.0  # of the learning rate, for all that is not the decoder
    clip = 5.0

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
        self.embeddings = self.model.get_input_embeddings().weight.requires_grad_(self.learns_words)
        free = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        decoder = {name: p for name, p in free.items() if part_of(name) in self.parts and part_of(name) == "decoder"}
        others = [(name, p) for name, p in free.items() if name not in decoder]
        others += [*self.heads.named_parameters("heads"), *self.words.named_parameters("heads")]
        self.parameters = [*decoder.values(), *(p for _, p in others)]
        self.others = MuonAdamW(others, lr=0.0, weight_decay=0.02)
        self.decoder = MuonAdamW(decoder.items(), lr=0.0, weight_decay=0.02) if decoder else None
        self.step = 0

    @property
    def optimizers(self) -> list[MuonAdamW]:
        return [self.others, self.decoder] if self.decoder else [self.others]

    @property
    def path(self) -> Path:
        return self.options.out.with_name(self.options.out.name + ".part") / "state.pt"

    def pictures(self, size: int, mix: tuple[Maker, ...]) -> Pictures:
        return Pictures(self.image, self.side, self.model.config.scale_factor, size, self.options.seed, mix)

    def batches(self) -> Callable[[int], Any]:
        return self.pictures(self.options.batch, self.mix)

    def losses(self, batch: Any) -> dict[str, Tensor]:
        tiles, labels = batch
        target = stack(labels)
        with torch.autocast("cpu", torch.bfloat16):
            patches, tokens = encode(self.model, tiles, self.image)
        return self.label_losses(patches, tokens, target)

    def label_losses(self, patches: Tensor, tokens: Tensor, target: Targets) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            losses = self.heads.losses(patches, tokens, target)
        return losses | self.words.losses(tokens, self.embeddings, target)

    def advance(self, batch: Any) -> dict[str, float]:
        rate = self.options.rate(self.step)
        for group in self.others.param_groups:
            group["lr"] = rate * self.share
        for group in self.decoder.param_groups if self.decoder else ():
            group["lr"] = rate * (_EMBEDDINGS if group["kind"] == "adamw" else 1.0)
        losses = self.losses(batch)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
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
            "model": self.model.state_dict(),
            "optimizers": [one.state_dict() for one in self.optimizers],
            "step": self.step,
        }
        torch.save(state, self.path.with_suffix(".new"))
        os.replace(self.path.with_suffix(".new"), self.path)

    def resume(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.load_heads(state)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]

    def head_state(self) -> dict[str, Any]:
        return {"heads": self.heads.state_dict(), "words": self.words.state_dict()}

    def load_heads(self, state: dict[str, Any]) -> None:
        self.heads.load_state_dict(state["heads"])
        self.words.load_state_dict(state["words"])

    @torch.no_grad()
    def scale_tokens(self, tiles: U8) -> None:
        """Scale the projector so that image tokens are _LENGTH times as long as words: a decoder's layers add little to
        a token that is many times longer than what they put out."""
        tokens = encode(self.model, tiles, self.image)[1]
        ratio = _LENGTH * self.embeddings.norm(dim=-1).mean() / tokens.float().norm(dim=-1).mean()
        for weight in self.model.model.connector.parameters():
            weight.mul_(ratio)


class Reading(Pretraining):
    """A step of the signs' stage."""

    mix = WRITTEN
    learns_words = False

    def label_losses(self, patches: Tensor, tokens: Tensor, target: Targets) -> dict[str, Tensor]:
        losses = super().label_losses(patches, tokens, target)
        return {name: _READING.get(name, 1.0) * loss for name, loss in losses.items()}


class Naming(Pretraining):
    """A step of the names' stage."""

    parts: tuple[str, ...] = ("decoder",)
    share = 0.5
    clip = 1.0

    def __init__(self, source: Source, options: PretrainOptions) -> None:
        super().__init__(source, options)
        self._names, self._collate = Names(self.tokenizer), source.collator()

    def batches(self) -> Callable[[int], Any]:
        options = self.options
        scale = self.model.config.scale_factor
        return Questions(options.model, self.side, scale, options.batch, options.seed, options.drills)

    def losses(self, batch: list[Asked]) -> dict[str, Tensor]:
        model = self.model
        inputs = self._collate([Item(n, (asked.example,)) for n, asked in enumerate(batch)])
        target = stack([asked.labels for asked in batch])
        ids, answers = inputs["input_ids"], torch.cat([_shares(asked) for asked in batch])
        with torch.autocast("cpu", torch.bfloat16):
            tiles = np.concatenate([asked.example.tiles for asked in batch])
            patches, tokens = encode(model, tiles, self.image)
            embedded = model.get_input_embeddings()(ids)
            pictures = (ids == model.config.image_token_id)[..., None]
            out = model.model.text_model(
                inputs_embeds=embedded.masked_scatter(pictures, tokens.to(embedded.dtype)),
                attention_mask=inputs["attention_mask"],
                position_ids=inputs["position_ids"],
                output_hidden_states=True,
            )
            logits = model.lm_head(out.last_hidden_state[inputs["logits_to_keep"]])
        each = F.cross_entropy(logits.float(), inputs["labels"], reduction="none")
        losses = {"answers": (each * answers).sum() / answers.sum()}
        half = (len(out.hidden_states) - 1) // 2
        places = {"name": self._names.names(ids, target), "answer": self._names.answers(batch, target)}
        for depth, (what, named) in enumerate(places.items(), half):
            states = out.hidden_states[depth][named.row, named.column]
            losses |= {f"{what} {kind}": _NAMES * loss for kind, loss in self._known(states, named).items()}
        return losses | self.shown(patches, tokens, target)

    def shown(self, patches: Tensor, tokens: Tensor, target: Targets) -> dict[str, Tensor]:
        """What is lost where encoder and projector do not see."""
        return {}

    def _known(self, states: Tensor, named: Named) -> dict[str, Tensor]:
        losses = {}
        if len(states):
            boxes = self.words.boxes(states, self.embeddings)
            losses["box"] = F.cross_entropy(boxes.flatten(0, 1), named.bins.flatten())
        if named.sign.any():
            letters = self.words.letters(states[named.sign], self.embeddings)
            losses["spelled"] = F.cross_entropy(letters.flatten(0, 1), named.spelled[named.sign].flatten())
        return losses


class Both(Naming):
    """A step in which everything learns from everything."""

    parts = ("vision", "projector", "decoder")
    share = 1 / 3
    clip = 2.0

    def shown(self, patches: Tensor, tokens: Tensor, target: Targets) -> dict[str, Tensor]:
        return {name: _LABELS * loss for name, loss in self.label_losses(patches, tokens, target).items()}


def _shares(asked: Asked) -> Tensor:
    """A weight per answer token, by which a question weighs what its skill does however long the answer."""
    segments = torch.from_numpy(asked.example.segments[asked.example.targets != IGNORE])
    weights = torch.tensor([0.0, *(_SKILLS.get(skill, 1.0) for skill in asked.skills)])
    return weights[segments] / torch.bincount(segments)[segments]


def pretrain(options: PretrainOptions, tell: Progress) -> Path:
    """Train `options.model` by one stage; the new model's folder."""
    check_replaceable(options.out, False, "config.json", "checkpoint")
    source = open_source(options.model)
    training = {"labels": Pretraining, "signs": Reading, "names": Naming, "both": Both}[options.stage](source, options)
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
        tell(options.stage, training.step, options.steps)
        if training.step % options.save_every == 0 or training.step == options.steps:
            right = training.accuracy(tiles, target) if "vision" in training.parts else {}
            line = {"step": training.step} | {f"{k} right": round(v, 4) for k, v in right.items()}
            with log.open("a") as out:
                out.write(json.dumps(line | {k: round(v, 4) for k, v in mean.items()}) + "\n")
            training.save()
    if options.stage == "labels":  # later, a decoder knows the tokens as they are
        training.scale_tokens(tiles)
    with partial_folder(options.out) as partial:
        save(training.model, source, partial, base=options.model, dtype=torch.float32)
        torch.save(training.head_state(), partial / HEADS)
        shutil.copyfile(log, partial / f"{options.stage}.jsonl")
        publish(partial, options.out)
    shutil.rmtree(training.path.parent)
    return options.out


def main(arguments: list[str] | None = None) -> int:
    defaults = PretrainOptions("", Path())
    parser = argparse.ArgumentParser(prog="python -m edgevlm.train.shipped.pretrain", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", choices=STAGES, default=defaults.stage, help=f"default {defaults.stage}")
    for name in ("steps", "batch", "drills", "learning_rate", "fall", "workers", "save_every", "seed"):
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
