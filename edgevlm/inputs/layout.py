"""The layout of a prompt: where its pictures lie, which positions its tokens have, and which tokens see which.

What depends on the prompt is an input of every graph, computed here once: graphs know no position rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.canvas import canvas_positions
from edgevlm.inputs.packing import Framed, Joined, Packed, Pooled
from edgevlm.io import limits
from edgevlm.models.blocks import mask_input, rope_inputs
from edgevlm.models.rope import rope_rows
from edgevlm.models.spec import Decoder
from edgevlm.types import F32, I64


@dataclass(frozen=True)
class Span:
    """The image tokens of one view, of a picture whose views are packed, or of a video's views one behind the other."""

    start: int  # position of the first one in the prompt
    grid: tuple[int, int]  # rows, columns
    packed: Packed | Pooled | Framed | Joined | None = None
    gap: int = 0  # tokens of text between two rows
    frames: int = 1  # views of that grid, one behind the other
    step: float = 1.0  # positions of time from one of them to the next
    place: tuple[int, int] | None = None  # on a canvas: row and column of a tile, from 1; None is the whole picture
    behind: int = 0  # tokens behind it that stand on its picture's canvas, too

    @property
    def places(self) -> I64:
        """Positions of its tokens, row by row."""
        number = np.arange(self.tokens)
        found: I64 = self.start + number + number // max(1, self.grid[1]) * self.gap
        return found

    @property
    def tokens(self) -> int:
        return self.frames * self.grid[0] * self.grid[1]

    @property
    def features(self) -> tuple[int, ...]:
        """Rows of features that an encoder gives for each of its views."""
        if self.packed is None:
            return (math.prod(self.grid),) * self.frames
        return self.packed.counts


@dataclass(frozen=True)
class Marker:
    """A control token around a picture that has an embedding of its own, in place of its row of the table."""

    start: int
    row: F32 = field(compare=False, repr=False)  # (D,)


@dataclass(frozen=True)
class Layout:
    """A prompt of `length` tokens; what follows it is the answer."""

    length: int
    spans: tuple[Span, ...] = ()
    markers: tuple[Marker, ...] = ()
    ids: tuple[int, ...] = field(default=(), compare=False, repr=False)  # its tokens, for engines that look them up


def on_canvas(
    spans: Sequence[Span], places: Sequence[tuple[int, int] | None], ids: I64, canvas: tuple[int, ...]
) -> list[Span]:
    """The spans with their views' places and the tokens behind each that stand on a canvas, too, by `ids`."""
    apart = np.append(np.flatnonzero(~np.isin(ids, canvas)), len(ids))
    ends = [span.start + span.tokens for span in spans]
    behind = [int(apart[np.searchsorted(apart, end)]) - end for end in ends]
    return [replace(s, place=place, behind=n) for s, place, n in zip(spans, places, behind, strict=True)]


def split_features(features: F32, layout: Layout) -> list[F32]:
    """Features (N, D) of all views, one behind the other, by view."""
    sizes = [size for span in layout.spans for size in span.features]
    return np.split(features, np.cumsum(sizes)[:-1]) if sizes else []


def image_tokens(layout: Layout, features: Sequence[F32]) -> list[F32]:
    """Each span's rows (tokens, D), of the features of all views in order: packed where the model packs.

    Raises EdgeVLMError where an encoder gave others than the prompt has room for.
    """
    left, found = list(features), []
    for span in layout.spans:
        own, left = left[: len(span.features)], left[len(span.features) :]
        if len(own) < len(span.features):
            raise _disagree((len(features), 0), "those of more views")
        for rows, size in zip(own, span.features, strict=True):
            if len(rows) != size:
                raise _disagree(rows.shape, (size, *rows.shape[1:]))
        found.append(np.concatenate(own) if span.packed is None else span.packed.run(own))
    if left:
        raise _disagree(left[0].shape, "no more")
    return found


def _disagree(found: object, expected: object) -> EdgeVLMError:
    return EdgeVLMError(
        f"The encoder gave features of shape {found}, expected {expected}: the bundle's graphs and its manifest "
        "disagree; export the bundle again."
    )


def merge(embeds: F32, layout: Layout, features: Sequence[F32]) -> F32:
    """Embeddings (S, D) of a prompt with the views' features (tokens, D) in the places of its image tokens, and with
    its markers' own embeddings. What lies behind the features' width stays as it is.

    Raises EdgeVLMError where an encoder gave others than the prompt has room for.
    """
    merged = np.array(embeds)  # an engine's own array may be read-only
    for span, rows in zip(layout.spans, image_tokens(layout, features), strict=True):
        if len(rows) != span.tokens or rows.shape[1] > merged.shape[1]:
            raise _disagree(rows.shape, (span.tokens, merged.shape[1]))
        merged[span.places, : rows.shape[1]] = rows
    for marker in layout.markers:
        merged[marker.start, : len(marker.row)] = marker.row
    return merged


def behind(layout: Layout, start: int) -> Layout:
    """What lies at `start` and later, as a layout of its own for `merge`. No picture reaches over `start`."""
    spans = tuple(replace(span, start=span.start - start) for span in layout.spans if span.start >= start)
    markers = tuple(replace(marker, start=marker.start - start) for marker in layout.markers if marker.start >= start)
    return Layout(layout.length - start, spans, markers)


def unchanged(d: Decoder, old: Layout, new: Layout, length: int) -> int:
    """How many of the first `length` positions, whose tokens are the same, a decoder computes under `new` as under
    `old`: their pictures, places and masks agree, none of them sees a position behind, and no picture is cut.
    """
    before = -1
    while length != before:
        before = length
        marked = ([marker.start for marker in layout.markers] for layout in (old, new))
        blocks = (_blocks(layout, d.mask) for layout in (old, new))
        parts = [(span.start, int(span.places[-1]) + 1) for span in new.spans] + _blocks(new, d.mask)
        for ours, theirs in ((old.spans, new.spans), marked, blocks):
            length = min(length, _first_other(ours, theirs))
        length = min((first for first, end in parts if first < length < end), default=length)
        if d.axes > 1:
            at, wanted = (positions(layout, d.axes, 0, length, d.places) for layout in (old, new))
            length = min(np.flatnonzero((at != wanted).any(axis=0)).tolist(), default=length)
    return length


def _first_other(ours: Sequence[Any], theirs: Sequence[Any]) -> int:
    """Where the first of two lists of things differs, in positions; more than any prompt has where none does."""
    for one, other in zip_longest(ours, theirs):
        if one != other:
            return min(_start(each) for each in (one, other) if each is not None)
    return limits.CONTEXT + 1


def _start(thing: Any) -> int:
    if isinstance(thing, Span):
        return thing.start
    return int(thing[0] if isinstance(thing, tuple) else thing)


def positions(layout: Layout, axes: int, start: int = 0, stop: int | None = None, places: str = "grid") -> I64:
    """(axes, stop - start) positions of the tokens from `start` to `stop` (None: the prompt's end), answer included.

    Of three axes (time, row, column), a view takes as many positions as its longer side has tokens (arXiv 2409.12191),
    and so do a video's: what follows starts behind their rows and columns, and the answer behind every position. With
    `places` "line", it takes as many as it has tokens; with "canvas" a picture takes those of its canvas and one more;
    with "number" as with "line", and the last three axes of its rows are the column, the row and which picture it is.
    """
    stop = layout.length if stop is None else stop
    if axes == 1 or places == "line":
        return np.arange(start, stop)[None].repeat(axes, axis=0)
    if places == "number":
        prompt = _numbered(layout, axes)
    else:
        on_one = places == "canvas"
        prompt = canvas_positions(layout.length, layout.spans) if on_one else _prompt_positions(layout, axes)
    answer = int(prompt.max(initial=-1)) + 1 + np.arange(max(0, stop - layout.length))
    return np.concatenate([prompt, np.broadcast_to(answer, (axes, len(answer)))], axis=1)[:, start:stop]


def _prompt_positions(layout: Layout, axes: int) -> I64:
    out, at, place = np.zeros((axes, layout.length), np.int64), 0, 0
    for span in (*layout.spans, Span(layout.length, (0, 0))):
        text = span.start - place
        out[:, place : span.start] = at + np.arange(text)
        at, (rows, cols) = at + text, span.grid
        inside = np.indices((span.frames, rows, cols)).reshape(3, -1)
        inside[0] = (inside[0].astype(np.float32) * np.float32(span.step)).astype(np.int64)
        out[:, span.start : span.start + span.tokens] = at + inside[-axes:]
        at, place = at + max(rows, cols), span.start + span.tokens
    return out


def _numbered(layout: Layout, axes: int) -> I64:
    out = np.arange(layout.length)[None].repeat(axes, axis=0)
    for number, span in enumerate(layout.spans):
        frame = span.packed if isinstance(span.packed, Framed) else None
        grid, start = (frame.lines, span.start + 1) if frame else (span.grid, span.start)
        row, col = np.indices(grid).reshape(2, -1)
        out[-3:, start : start + len(row)] = col, row, np.full_like(row, number)
    return out


def visible(layout: Layout, rule: str, past: int, new: int, window: int | None = None) -> npt.NDArray[np.bool_]:
    """(new, past + new): which positions each new one sees, under a decoder's mask rule and an attention's window.

    A window clips what a picture sees of itself, and not what a prompt does: create_masks_for_vision_model and
    create_sliding_window_causal_mask of transformers.
    """
    row, col = np.arange(past, past + new)[:, None], np.arange(past + new)[None]
    seen = col <= row
    blocks = _blocks(layout, rule)
    if rule == "image":
        seen |= _within(blocks, row, col)
    if window is not None:
        seen &= col > row - window
    if rule in ("prompt", "prefix"):
        seen |= _within(blocks, row, col)
    return seen


def _blocks(layout: Layout, rule: str) -> list[tuple[int, int]]:
    """First and last + 1 of positions that see each other, later ones too."""
    if rule == "prompt":
        return [(0, layout.length)]
    if rule == "prefix":
        return [(0, max(span.start + span.tokens for span in layout.spans))] if layout.spans else []
    return [(span.start, span.start + span.tokens) for span in layout.spans] if rule == "image" else []


def _within(blocks: list[tuple[int, int]], row: I64, col: I64) -> npt.NDArray[np.bool_]:
    both = np.zeros((len(row), col.shape[1]), np.bool_)
    for first, end in blocks:
        both |= (row >= first) & (row < end) & (col >= first) & (col < end)
    return both


def runs(layout: Layout, rule: str, start: int, stop: int, most: int) -> Iterator[tuple[int, int, bool]]:
    """Positions from `start` to `stop` in parts: first, last + 1, and whether the part is one that sees itself.

    All others have at most `most` positions.
    """
    for first, last in (*_blocks(layout, rule), (stop, stop)):
        while start < min(first, stop):
            end = min(start + most, first, stop)
            yield start, end, False
            start = end
        if start < (end := min(last, stop)):
            yield start, end, True
            start = end


def next_part(layout: Layout, rule: str, start: int, stop: int, most: int) -> int:
    """Where a call ends that reads positions from `start` on, of those up to `stop`: after `most` or fewer.

    Positions that see later ones are read in one call, however many they are: nothing is cut inside of them.
    """
    end = min(start + most, stop)
    for first, last in _blocks(layout, rule):
        if first < end < last and end < stop:
            end = first if first > start else min(last, stop)
    return end


def decoder_inputs(d: Decoder, layout: Layout, past: int, new: int) -> dict[str, npt.NDArray[Any]]:
    """Everything that a decoder call of `new` positions after `past` takes beside embeddings and states."""
    found: dict[str, npt.NDArray[Any]] = {}
    for name, rope in d.ropes.items():
        at = positions(layout, rope.axes, past, past + new, d.places)
        found |= dict(zip(rope_inputs(name), rope_rows(rope, at), strict=True))
    for window in d.windows:
        found[mask_input(window)] = visible(layout, d.mask, past, new, window)
    if d.learned_positions:
        found["positions"] = np.arange(past, past + new)
    return found
