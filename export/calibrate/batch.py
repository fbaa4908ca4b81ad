"""Prompts and answers that are calibrated on, packed one behind the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.inputs.layout import Layout, Marker, Span, positions
from edgevlm.models.blocks import rope_inputs
from edgevlm.models.rope import rope_rows
from edgevlm.models.spec import Decoder
from edgevlm.types import F32, I64


@dataclass(frozen=True)
class Group:
    """Sequences that share a prefix (one picture) and then differ. prefix, branches: lengths in tokens."""

    prefix: int
    branches: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Prompts and answers, one behind the other in `ids`; each picture's shared prefix is stored once."""

    feeds: Mapping[str, npt.NDArray[Any]]  # the tower's inputs for all views together
    layouts: tuple[Layout, ...]  # of each group's prompts
    ids: I64  # (S,)
    groups: tuple[Group, ...]
    predicting: I64  # rows of `ids` whose next token belongs to an answer
    answers: I64  # ... and that token
    image_token_id: int

    def sequences(self) -> Iterator[tuple[I64, I64, Layout]]:
        """Rows that are new, rows of all positions so far, and their layout: of each prefix, then of its branches."""
        start = 0
        for group, layout in zip(self.groups, self.layouts, strict=True):
            prefix = np.arange(start, start + group.prefix)
            start += group.prefix
            if group.prefix:
                yield prefix, prefix, layout
            for length in group.branches:
                own = np.arange(start, start + length)
                start += length
                if length:
                    yield own, np.concatenate([prefix, own]), layout

    @property
    def layout(self) -> Layout:
        """Of all rows together: where each picture's tokens lie in `ids`."""
        spans, markers, start = list[Span](), list[Marker](), 0
        for group, layout in zip(self.groups, self.layouts, strict=True):
            spans += [replace(span, start=start + span.start) for span in layout.spans]
            markers += [replace(marker, start=start + marker.start) for marker in layout.markers]
            start += group.prefix + sum(group.branches)
        return Layout(len(self.ids), tuple(spans), tuple(markers))

    def rows(self, d: Decoder) -> dict[str, npt.NDArray[Any]]:
        """cos and sin (S, size / 2) of every row, by its position in its own sequence."""
        found: dict[str, list[F32]] = {}
        for group, layout in zip(self.groups, self.layouts, strict=True):
            spans = [(0, group.prefix)] + [(group.prefix, group.prefix + n) for n in group.branches]
            for start, stop in (span for span in spans if span[0] < span[1]):
                for name, rope in d.ropes.items():
                    both = rope_rows(rope, positions(layout, rope.axes, start, stop, d.places))
                    for key, part in zip(rope_inputs(name), both, strict=True):
                        found.setdefault(key, []).append(part)
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def token_weights(self, image: float, text: float, answer: float) -> F32:
        """(S,) weights of mean 1 that give image tokens, other prompt tokens and answers these shares of the whole."""
        kinds = np.where(self.ids == self.image_token_id, 0, 1)
        kinds[self.predicting] = 2
        counts = np.bincount(kinds, minlength=3)
        shares = np.array([image, text, answer]) * (counts > 0)
        each = np.asarray(shares / shares.sum() / np.maximum(counts, 1) * len(kinds), dtype=np.float32)
        return each[kinds]
