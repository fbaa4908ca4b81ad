"""Losses of the training stages on a SmolVLM model, and exact-answer scoring on packed batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SmolVLMForConditionalGeneration

from edgevlm.train.build import TILE
from edgevlm.train.data import IGNORE, Batch
from edgevlm.train.scenes import COLOUR_NAMES, SHAPES

SHAPE_CLASSES = len(SHAPES) + 1  # number 0 is background
COLOUR_CLASSES = len(COLOUR_NAMES) + 1


class LabelHeads(nn.Module):
    """Linear probes that teach the encoder what the generator knows; thrown away after training."""

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.patch = nn.Linear(vision_width, SHAPE_CLASSES + COLOUR_CLASSES + 4)
        self.token_norm = nn.LayerNorm(text_width)
        self.token = nn.Linear(text_width, SHAPE_CLASSES + COLOUR_CLASSES)
        self.mask = nn.Linear(vision_width, 16)

    def loss(self, patches: Tensor, tokens: Tensor, batch: Batch, sharp: bool) -> Tensor:
        """Coarse: shape and colour per patch (B, 144, W) and per image token (B, 36, D), each object's extent.

        Sharp: outlines, and amounts per image token that add up to the counts. An object between two tokens
        belongs to both in part, so no token has to decide what a pixel more or less would change.
        """
        shape, colour, edges = self.patch(patches).float().split([SHAPE_CLASSES, COLOUR_CLASSES, 4], -1)
        labels = _stack([x.patches for x in batch.labels])
        held = labels[:, 0] > 0
        extent = F.smooth_l1_loss(edges[held], _stack([x.edges for x in batch.labels])[held], beta=0.1)
        total = _classes(shape, colour, labels)
        shape, colour = self.token(self.token_norm(tokens)).float().split([SHAPE_CLASSES, COLOUR_CLASSES], -1)
        if not sharp:
            return total + 2.0 * extent + 2.0 * _classes(shape, colour, _stack([x.tokens for x in batch.labels]))
        masks, amounts = _stack([x.masks for x in batch.labels]), _stack([x.amounts for x in batch.labels])
        outline = F.binary_cross_entropy_with_logits(self.mask(patches).float(), masks)
        return total + 5.0 * extent + 2.0 * outline + 2.0 * _amounts(shape, colour, amounts)

    def accuracy(self, tokens: Tensor, batch: Batch) -> float:
        """Share of pictures whose objects the image tokens' probabilities count right."""
        colour = self.token(self.token_norm(tokens)).float()[..., SHAPE_CLASSES:]
        found = (1 - colour.softmax(-1)[..., 0]).sum(1).round()
        return float((found == torch.tensor([(x.tokens[0] > 0).sum() for x in batch.labels])).float().mean())


def _amounts(shape: Tensor, colour: Tensor, amounts: Tensor) -> Tensor:
    """Cross-entropy with parts of objects, and the distance of the summed probabilities from the counts."""
    shapes, colours = amounts[..., : len(SHAPES)], amounts[..., len(SHAPES) :]
    crowding = colours.sum(-1, keepdim=True).clamp(min=1.0)  # two objects may share one token
    held = colours.sum(-1, keepdim=True) / crowding
    parts = torch.cat([1 - held, colours / crowding], -1)
    log_colour, log_shape = colour.log_softmax(-1), shape[..., 1:].log_softmax(-1)
    entropy = -(parts * log_colour).sum(-1).mean() - (shapes * log_shape).sum() / shapes.sum()
    found_colours = log_colour.exp()
    found_shapes = log_shape.exp() * (1 - found_colours[..., :1])
    found = torch.cat([found_shapes, found_colours[..., 1:]], -1).sum(1)
    distance: Tensor = F.smooth_l1_loss(found, amounts.sum(1), beta=0.2)
    return distance + entropy


def _stack(arrays: list[Any]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def _classes(shape: Tensor, colour: Tensor, labels: Tensor) -> Tensor:
    """Colour (or nothing) everywhere; shape where there is something: most places are background."""
    shapes = F.cross_entropy(shape.flatten(0, 1), labels[:, 0].flatten(), ignore_index=0)
    return shapes + F.cross_entropy(colour.flatten(0, 1), labels[:, 1].flatten())


def encode(model: SmolVLMForConditionalGeneration, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 (N, 96, 96, 3) -> tower output (N, 144, W), projected image tokens (N, 36, D)."""
    values = pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()
    side = TILE // model.config.vision_config.patch_size
    mask = torch.ones(len(values), side, side, dtype=torch.bool)
    hidden = model.model.vision_model(pixel_values=values, patch_attention_mask=mask).last_hidden_state
    return hidden, model.model.connector(hidden)


def answer_logits(
    model: SmolVLMForConditionalGeneration, batch: Batch, train_encoder: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (targets, vocabulary) of the answers; also the whole picture's patches and image tokens."""
    count, per_picture = batch.pixels.shape[:2]
    pixels = torch.from_numpy(batch.pixels)
    with torch.set_grad_enabled(train_encoder and torch.is_grad_enabled()):
        patches, tokens = encode(model, pixels[:, -1])
    image = tokens
    if per_picture > 1:  # tiles are seen, but only the whole picture trains the encoder: it costs a fifth
        with torch.no_grad():
            parts = encode(model, pixels[:, :-1].flatten(0, 1))[1].reshape(count, -1, tokens.shape[-1])
        image = torch.cat([parts, tokens], 1)
    ids = torch.from_numpy(batch.ids)
    embedded = model.get_input_embeddings()(ids).float()  # autocast would keep 8 bits of the residual stream
    embedded = embedded.masked_scatter((ids == model.config.image_token_id)[..., None], image.float())
    hidden = model.model.text_model(
        inputs_embeds=embedded,
        attention_mask=_additive(torch.from_numpy(batch.segments)),
        position_ids=torch.from_numpy(batch.positions),
        use_cache=False,
    ).last_hidden_state
    wanted = torch.from_numpy(batch.targets) != IGNORE
    return model.lm_head(hidden[wanted]), patches, tokens


def _additive(segments: Tensor) -> Tensor:
    """(B, 1, L, L): 0 where a position sees another, the lowest number elsewhere.

    Not boolean: transformers' eager attention adds whatever mask it is given.
    """
    seen = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    mask = torch.tril(seen) & ((segments[:, None, :] >= 0) | torch.eye(segments.shape[1], dtype=torch.bool))
    return torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(torch.float32).min)[:, None]


def question_loss(
    model: SmolVLMForConditionalGeneration, heads: LabelHeads, batch: Batch, label_weight: float
) -> Tensor:
    """Of the answers, and of the labels at their weight; at weight 0 the encoder stays as it is."""
    logits, patches, tokens = answer_logits(model, batch, train_encoder=label_weight > 0)
    targets = torch.from_numpy(batch.targets)
    wanted = targets != IGNORE
    weights = torch.from_numpy(batch.weights)[wanted]
    each = F.cross_entropy(logits.float(), targets[wanted], reduction="none")
    answers = (each * weights).sum() / weights.sum()
    return answers + label_weight * heads.loss(patches, tokens, batch, True) if label_weight > 0 else answers


def label_loss(model: SmolVLMForConditionalGeneration, heads: LabelHeads, batch: Batch, sharp: bool) -> Tensor:
    patches, tokens = encode(model, torch.from_numpy(batch.pixels)[:, -1])
    return heads.loss(patches, tokens, batch, sharp)


@torch.no_grad()
def score(model: SmolVLMForConditionalGeneration, batch: Batch) -> list[tuple[str, str, bool]]:
    """(skill, answer, right) of each question. Right: greedy decoding gives exactly the answer, then stops.

    That is so if and only if every answer token is the most likely one after the true tokens before it.
    """
    logits = answer_logits(model, batch)[0]
    hits = torch.zeros(batch.targets.shape, dtype=torch.bool)
    targets = torch.from_numpy(batch.targets)
    wanted = targets != IGNORE
    hits[wanted] = logits.argmax(-1) == targets[wanted]
    rows = []
    for row, asked in enumerate(batch.questions):
        for number, question in enumerate(asked, 1):
            where = torch.from_numpy(batch.segments[row] == number) & wanted[row]
            rows.append((question.skill, question.answer, bool(hits[row][where].all())))
    return rows
