"""Positions (time, row, column) of a prompt whose pictures lie on canvases: docs/preprocessing.md, section 8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from edgevlm.types import I64


class Shown(Protocol):
    """A view's image tokens: `start`, `grid`, `place` and `behind` of layout.Span."""

    @property
    def start(self) -> int: ...
    @property
    def grid(self) -> tuple[int, int]: ...
    @property
    def place(self) -> tuple[int, int] | None: ...
    @property
    def behind(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def places(self) -> I64: ...


def canvas_positions(length: int, views: Sequence[Shown]) -> I64:
    """(3, length) of a prompt with these views: a picture's slices lie on a canvas, the whole of it is spread over all
    of that, and the tokens around them stand at corners and edges ("canvas M-RoPE" of transformers' get_rope_index).
    """
    out, at, place = np.zeros((3, length), np.int64), 0, 0
    for whole, *slices in _pictures(views):
        start, last = max(0, whole.start - 1), slices[-1] if slices else whole
        text = max(0, start - place)
        out[:, place : place + text], at = at + np.arange(text), at + text
        place = last.start + last.tokens + last.behind
        (high, wide), (rows, cols) = (slices[0].grid, last.place or (1, 1)) if slices else (whole.grid, (1, 1))
        size = rows * high, cols * wide
        out[:, start:place] = at
        _put(out, start, (max(at - 1, 0), max(at - 1, 0)))
        if whole.start + whole.tokens < place:
            _put(out, whole.start + whole.tokens, (at + size[0], at + size[1]))
        spread = np.meshgrid(*(_spread(*axis) for axis in zip(whole.grid, size, strict=True)), indexing="ij")
        out[1:, whole.places] = at + np.reshape(spread, (2, -1))
        for number, view in enumerate(slices):
            row, col = divmod(number, cols)
            corner, end = (at + row * high, at + col * wide), view.start + view.tokens
            out[1:, view.places] = np.add(corner, np.indices(view.grid).reshape(2, -1).T).T
            _put(out, view.start - 1, corner)
            if end < place:
                _put(out, end, (corner[0] + view.grid[0] - 1, corner[1] + view.grid[1] - 1))
            if col == cols - 1 and view is not last:  # what ends a row of slices
                out[1:, end + 1 : slices[number + 1].start - 1] = np.array([[corner[0] + high - 1], [at + size[1]]])
        at += max(size) + 1
    out[:, place:] = at + np.arange(length - place)
    return out


def _pictures(views: Sequence[Shown]) -> list[list[Shown]]:
    """Each picture's views: all of it, then its slices."""
    found: list[list[Shown]] = []
    for view in views:
        if view.place is None or not found:
            found.append([])
        found[-1].append(view)
    return found


def _put(out: I64, token: int, place: tuple[int, int]) -> None:
    out[1:, token] = place


def _spread(count: int, size: int) -> I64:
    """`count` whole numbers evenly from 0 to size - 1, as torch.linspace and round make them in float32."""
    step, index = np.float32(size - 1) / np.float32(max(1, count - 1)), np.arange(count)
    first, last = step * index.astype(np.float32), np.float32(size - 1) - step * index[::-1].astype(np.float32)
    return np.rint(np.where(index < max(1, count // 2), first, last)).astype(np.int64)
