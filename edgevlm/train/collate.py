"""Examples to the tensors that a transformers model takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgevlm.inputs.preprocess import normalize_all
from edgevlm.inputs.spec import ImageSpec
from edgevlm.train.conversations import BadRecord
from edgevlm.train.examples import IGNORE, Encoder, Example
from edgevlm.train.records import Records

Batch = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """The Examples of one record (two for a preference), and the errors of records that were skipped before it."""

    number: int
    examples: tuple[Example, ...]
    bad: tuple[str, ...] = ()


@dataclass
class Items(Dataset[Item]):
    """Records by number, encoded for a model.

    A picture is decoded here for the first time. If that fails, `skip_bad` takes the next good record instead;
    without it the Item comes empty, for the main process to raise (an exception of a worker loses its sentence).
    """

    records: Records
    encoder: Encoder
    skip_bad: bool = False
    pairs: bool = False
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = len(self.records)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Item:
        bad: list[str] = []
        for step in range(self.length):
            chosen = (number + step) % self.length
            try:
                conversation = self.records[chosen]
                encoder = self.encoder
                examples = encoder.pair(conversation) if self.pairs else (encoder.encode(conversation),)
                return Item(chosen, examples, tuple(bad))
            except BadRecord as error:
                bad.append(str(error))
                if not self.skip_bad:
                    break
        return Item(number, (), tuple(bad))


@dataclass(frozen=True)
class Collator:
    """Items to a batch; rows are all first Examples, then all second ones.

    flat_pixels: the model takes pixel_values as (tiles of the batch, 3, S, S); else as (B, most tiles, 3, S, S).
    Only the N positions that predict an answer get logits: labels (N,) in the order of the rows.
    per_question: with weights (N,), by which the dialogues of a row count the same, and the mean weight is 1.
    """

    image: ImageSpec
    pad_id: int
    flat_pixels: bool
    per_question: bool = False

    def __call__(self, items: list[Item]) -> Batch:
        bad = [sentence for item in items for sentence in item.bad]
        if not all(item.examples for item in items):
            return {"bad": bad}
        rows = [item.examples[n] for n in range(len(items[0].examples)) for item in items]
        targets = pad([row.targets for row in rows], IGNORE)
        batch: Batch = {
            "input_ids": pad([row.ids for row in rows], self.pad_id),
            "position_ids": pad([row.positions for row in rows], 0),
            "attention_mask": self._mask(rows),
            "logits_to_keep": targets != IGNORE,
            "labels": targets[targets != IGNORE],
            "numbers": torch.tensor([item.number for item in items]),
        }
        if self.per_question:
            batch["weights"] = torch.cat([_shares(row) for row in rows])
        if any(len(row.tiles) for row in rows):
            batch["pixel_values"] = self._pixels(rows)
        return batch | ({"bad": bad} if bad else {})

    def _mask(self, rows: list[Example]) -> Tensor:
        """(B, L) of 1 and 0; where dialogues share a picture, (B, 1, L, L): whether a position attends to another."""
        segments = pad([row.segments for row in rows], -1)
        if int(segments.max()) <= 1:
            return (segments >= 0).long()
        seen = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
        length = segments.shape[1]
        itself = torch.eye(length, dtype=torch.bool)  # padding must see something, or its softmax is NaN
        mask: Tensor = seen.tril() & (segments[:, None, :] >= 0) | itself
        return mask[:, None]

    def _pixels(self, rows: list[Example]) -> Tensor:
        if self.flat_pixels:
            return torch.from_numpy(normalize_all([tile for row in rows for tile in row.tiles], self.image))
        side, most = max(row.tiles.shape[1] for row in rows), max(len(row.tiles) for row in rows)
        pixels = np.zeros((len(rows), most, 3, side, side), np.float32)  # the model drops tiles that are all zero
        for row, out in zip(rows, pixels, strict=True):
            if len(row.tiles):
                out[: len(row.tiles)] = normalize_all(list(row.tiles), self.image)
        return torch.from_numpy(pixels)


def _shares(row: Example) -> Tensor:
    dialogues = torch.from_numpy(row.segments[row.targets != IGNORE])
    lengths = torch.bincount(dialogues)
    return len(dialogues) / int((lengths > 0).sum()) / lengths[dialogues].float()


def pad(rows: list[Any], fill: int) -> Tensor:
    """(B, longest) int64 from arrays (L,)."""
    out = np.full((len(rows), max(map(len, rows))), fill, np.int64)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(out)
