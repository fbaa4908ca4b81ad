"""The four stages of pretraining the default model: what a step of each trains, and on which losses.

labels: linear heads read which thing, colour, letter and box each patch and each image token shows; they train the
encoder and the projector. signs: the same, on pictures that are mostly signs. names: the decoder learns Scenes'
questions. joint (`--stage both`): all parts learn from questions and labels together.
"""

from __future__ import annotations

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
from edgevlm.io.files import writing
from edgevlm.io.options import check_types
from edgevlm.train.collate import Item
from edgevlm.train.examples import IGNORE
from edgevlm.train.models import Source, choose_trained, part_of
from edgevlm.train.muon import MuonAdamW
from edgevlm.train.shipped.batches import CROWDED, WRITTEN, LabelledExample, Maker, Pictures, Questions
from edgevlm.train.shipped.heads import Heads, Targets, WordHeads, stack
from edgevlm.train.shipped.named import NamedPositions, NameFinder
from edgevlm.types import U8

HEADS = "heads.pt"
_TOKEN_LENGTH = 2.0  # of image tokens, in mean lengths of a word's embedding
# Image tokens are trained towards embeddings of words, which must therefore change slowly.
_EMBEDDING_RATE = 0.15  # of the decoder's rate
_SKILL_WEIGHTS = {"text": 4.0, "grounding": 2.0, "count": 3.0, "caption": 3.0}  # weights of questions by skill; else 1
_SIGN_WEIGHTS = {"characters": 3.0, "spelled": 4.0, "words": 2.0}  # weights of losses in the stage `signs`; else 1
_NAME_WEIGHT, _LABEL_WEIGHT = 0.3, 0.5  # weights of losses where the decoder learns to answer, whose own weight is 1


@dataclass(frozen=True)
class PretrainOptions:
    """One stage on one model."""

    model: str
    out: Path
    stage: str = "labels"
    steps: int = 3000
    batch: int = 24  # pictures
    drills: int = 0  # pictures in every other batch, which then asks about a sign's text only or about counts only
    learning_rate: float = 1e-3
    fall: float = 0.4  # share of the steps over which the rate falls to 0
    workers: int = 2  # processes that draw pictures
    save_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        if self.stage not in STAGES:
            raise EdgeVLMError(f"There is no stage '{self.stage}': choose {' or '.join(STAGES)}.")
        known = min(self.steps, self.batch, self.save_every) > 0 and min(self.workers, self.drills) >= 0
        if not known or not 0 < self.fall <= 1:
            raise EdgeVLMError(
                "A number is out of its range: steps, batch and save-every are 1 or more, workers and drills 0 or "
                "more, fall is above 0 and at most 1."
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


class LabelStage:
    """The stage `labels`, and what all stages share: model, heads, optimizers, and the state of a stopped run."""

    parts: tuple[str, ...] = ("vision", "projector")
    mix = CROWDED
    learns_words = True
    share = 1.0  # of the learning rate, for all parameters but the decoder's
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
        self.words = WordHeads(self.tokenizer, config.text_config.hidden_size)
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
            group["lr"] = rate * (_EMBEDDING_RATE if group["kind"] == "adamw" else 1.0)
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
        with writing(self.path, force=True) as new:
            torch.save(state, new)

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
        """Scale the projector until image tokens are _TOKEN_LENGTH times as long as words' embeddings.

        A decoder's layers change a token little if it is many times longer than their outputs.
        """
        tokens = encode(self.model, tiles, self.image)[1]
        ratio = _TOKEN_LENGTH * self.embeddings.norm(dim=-1).mean() / tokens.float().norm(dim=-1).mean()
        for weight in self.model.model.connector.parameters():
            weight.mul_(ratio)


class SignStage(LabelStage):
    """The stage `signs`: labels again, with more weight on letters and words."""

    mix = WRITTEN
    learns_words = False

    def label_losses(self, patches: Tensor, tokens: Tensor, target: Targets) -> dict[str, Tensor]:
        losses = super().label_losses(patches, tokens, target)
        return {name: _SIGN_WEIGHTS.get(name, 1.0) * loss for name, loss in losses.items()}


class NameStage(LabelStage):
    """The stage `names`: the decoder alone learns to answer; encoder and projector are frozen."""

    parts: tuple[str, ...] = ("decoder",)
    share = 0.5
    clip = 1.0

    def __init__(self, source: Source, options: PretrainOptions) -> None:
        super().__init__(source, options)
        self._finder, self._collate = NameFinder(self.tokenizer), source.collator()

    def batches(self) -> Callable[[int], Any]:
        options = self.options
        scale = self.model.config.scale_factor
        return Questions(options.model, self.side, scale, options.batch, options.seed, options.drills)

    def losses(self, batch: list[LabelledExample]) -> dict[str, Tensor]:
        model = self.model
        inputs = self._collate([Item(n, (one.example,)) for n, one in enumerate(batch)])
        target = stack([one.labels for one in batch])
        ids, answers = inputs["input_ids"], torch.cat([_answer_weights(one) for one in batch])
        with torch.autocast("cpu", torch.bfloat16):
            tiles = np.concatenate([one.example.tiles for one in batch])
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
        places = {"name": self._finder.names(ids, target), "answer": self._finder.answers(batch, target)}
        for depth, (what, named) in enumerate(places.items(), half):
            states = out.hidden_states[depth][named.row, named.column]
            losses |= {
                f"{what} {kind}": _NAME_WEIGHT * loss for kind, loss in self._position_losses(states, named).items()
            }
        return losses | self.visual_losses(patches, tokens, target)

    def visual_losses(self, patches: Tensor, tokens: Tensor, target: Targets) -> dict[str, Tensor]:
        """Losses of the labels; none where encoder and projector are frozen."""
        return {}

    def _position_losses(self, states: Tensor, named: NamedPositions) -> dict[str, Tensor]:
        losses = {}
        if len(states):
            boxes = self.words.boxes(states, self.embeddings)
            losses["box"] = F.cross_entropy(boxes.flatten(0, 1), named.bins.flatten())
        if named.sign.any():
            letters = self.words.letters(states[named.sign], self.embeddings)
            losses["spelled"] = F.cross_entropy(letters.flatten(0, 1), named.spelled[named.sign].flatten())
        return losses


class JointStage(NameStage):
    """The stage `both`: encoder, projector and decoder learn from questions, names and labels together."""

    parts = ("vision", "projector", "decoder")
    share = 1 / 3
    clip = 2.0

    def visual_losses(self, patches: Tensor, tokens: Tensor, target: Targets) -> dict[str, Tensor]:
        return {name: _LABEL_WEIGHT * loss for name, loss in self.label_losses(patches, tokens, target).items()}


def _answer_weights(labelled: LabelledExample) -> Tensor:
    """A weight per answer token: those of one answer add up to the weight of the question's skill."""
    example = labelled.example
    segments = torch.from_numpy(example.segments[example.targets != IGNORE])
    weights = torch.tensor([0.0, *(_SKILL_WEIGHTS.get(skill, 1.0) for skill in labelled.skills)])
    return weights[segments] / torch.bincount(segments)[segments]


STAGES: dict[str, type[LabelStage]] = {
    "labels": LabelStage,
    "signs": SignStage,
    "names": NameStage,
    "both": JointStage,
}
