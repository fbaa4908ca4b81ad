"""The features of a picture's views become one run of image tokens: docs/preprocessing.md, section 9.

An encoder sees one view at a time. Some models then put the tiles' features together to one map of the picture, cut off
what is padding, and end each row with a learned newline. How many tokens that makes follows from the picture's size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.check import check
from edgevlm.inputs.views import View
from edgevlm.io import limits
from edgevlm.types import F32

Grid = tuple[int, int]  # rows, columns


@dataclass(frozen=True)
class Packing:
    """most: a map larger than so many views is scaled down to them; None: maps stay as they are.

    newline: the learned row (D,) that ends each row of a map; empty until an export takes it from the weights.
    framed: a picture is one view of any size, all of whose rows end so, between the learned rows `begin` and `end`.
    whole_last: the map of the tiles, whose views lack their padding, comes first and is never scaled; then a learned
    row, `separator`, as `newline` is; then the whole picture, whose rows end in newlines, too.
    """

    most: int | None = None
    newline: tuple[float, ...] = ()
    framed: bool = False
    begin: tuple[float, ...] = ()
    end: tuple[float, ...] = ()
    whole_last: bool = False
    separator: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        most = limits.GRID_TILES
        check(self.most is None or 1 <= self.most <= most, "image", "packing.most", f"1 to {most}", self.most)
        for name in ("newline", "begin", "end", "separator"):
            size = len(getattr(self, name))
            check(size <= limits.WIDTH, "image", f"packing.{name}", "a row of features", size)
        check(not self.framed or self.most is None, "image", "packing.most", "null beside framed", self.most)
        alone = not self.whole_last or (self.most is None and not self.framed)
        check(alone, "image", "packing.whole_last", "false beside framed and most", self.whole_last)

    def plan(self, picture: tuple[int, int], views: Sequence[View], sides: Sequence[Grid]) -> Packed | Framed | Joined:
        """What becomes of the features of `views`, the whole picture and its tiles row by row.

        picture: width and height in pixels. sides: rows and columns of features of each view.
        """
        newline, begin, end = (np.array(row, np.float32) for row in (self.newline, self.begin, self.end))
        side = sides[0]
        if min(least := min(sides, key=min)) < 1:
            raise EdgeVLMError(f"A view of {least[0]} x {least[1]} image tokens is none: give a larger picture.")
        if self.framed:
            return Framed(side, newline, begin, end)
        if self.whole_last:
            columns = sum(view.place is not None and view.place[0] == 1 for view in views)
            return Joined(tuple(sides), columns, newline, np.array(self.separator, np.float32))
        tiles = max((view.place for view in views if view.place), default=(0, 0))
        rows, cols = tiles[0] * side[0], tiles[1] * side[1]
        cut = _padding(picture, rows, cols) if len(views) > 1 else (0, 0)
        rows, cols = rows - 2 * cut[0], cols - 2 * cut[1]
        if self.most is not None and (ratio := math.sqrt(rows * cols / (self.most * side[0] ** 2))) > 1.1:
            rows, cols = int(rows // ratio), int(cols // ratio)
            if min(rows, cols) < 1:
                raise EdgeVLMError(
                    f"A picture of {picture[0]} x {picture[1]} is too elongated for this model: cut it into pieces."
                )
        return Packed(side, tiles, cut, (rows, cols), newline)


def _padding(picture: tuple[int, int], rows: int, cols: int) -> Grid:
    """Rows at the top and columns at the left of a map that hold padding; as many lie at the other end.

    Of transformers' unpad_image, its rounding to 7 digits included.
    """
    width, height = picture
    if width / height > cols / rows:
        return (rows - int(round(height * (cols / width), 7))) // 2, 0
    return 0, (cols - int(round(width * (rows / height), 7))) // 2


@dataclass(frozen=True)
class Packed:
    """How one picture's features are packed: the whole picture's first, then the map of its tiles."""

    side: Grid  # of a view
    tiles: Grid  # (0, 0): the whole picture alone, then one newline
    cut: Grid  # rows and columns that are left out at either end of the map
    map: Grid  # of what is left, after scaling
    newline: F32 = field(compare=False, repr=False)

    @property
    def views(self) -> int:
        return 1 + math.prod(self.tiles)

    @property
    def counts(self) -> tuple[int, ...]:
        """Features of each view."""
        return (math.prod(self.side),) * self.views

    @property
    def tokens(self) -> int:
        rows, cols = self.map
        return math.prod(self.side) + (rows * (cols + 1) if self.views > 1 else 1)

    def run(self, features: Sequence[F32]) -> F32:
        """Each view's features (side rows * columns, D), in order, to the picture's tokens (N, D)."""
        whole, *tiles = features
        if not tiles:
            return np.concatenate([whole, self.newline[None]])
        (rows, cols), (high, wide), width = self.tiles, self.side, whole.shape[-1]
        cells = np.stack(tiles).reshape(rows, cols, high, wide, width)
        stitched = cells.transpose(0, 2, 1, 3, 4).reshape(rows * high, cols * wide, width)
        top, left = self.cut
        kept = stitched[top : len(stitched) - top, left : stitched.shape[1] - left]
        kept = _resized(_resized(kept, 0, self.map[0]), 1, self.map[1])
        return np.concatenate([whole, _ended(kept, self.newline)])


@dataclass(frozen=True)
class Framed:
    """How a view's features become tokens: each row ends in a newline; one row is before all of them, one behind."""

    side: Grid  # of the view
    newline: F32 = field(compare=False, repr=False)
    begin: F32 = field(compare=False, repr=False)
    end: F32 = field(compare=False, repr=False)
    views: int = 1

    @property
    def counts(self) -> tuple[int, ...]:
        """Features of each view."""
        return (math.prod(self.side),)

    @property
    def lines(self) -> Grid:
        """Rows and columns of tokens between the first and the last."""
        return self.side[0], self.side[1] + 1

    @property
    def tokens(self) -> int:
        return math.prod(self.lines) + 2

    def run(self, features: Sequence[F32]) -> F32:
        """The view's features (side rows * columns, D) to the picture's tokens (N, D)."""
        (view,) = features
        lines = _ended(view.reshape(*self.side, -1), self.newline)
        return np.concatenate([self.begin[None], lines, self.end[None]])


@dataclass(frozen=True)
class Joined:
    """The map of a picture's tiles, a separator and the whole picture, each row of both with a newline."""

    sides: tuple[Grid, ...]  # of each view: tiles row by row, then the whole picture
    columns: int  # of tiles
    newline: F32 = field(compare=False, repr=False)
    separator: F32 = field(compare=False, repr=False)

    @property
    def views(self) -> int:
        return len(self.sides)

    @property
    def counts(self) -> tuple[int, ...]:
        """Features of each view."""
        return tuple(math.prod(side) for side in self.sides)

    @property
    def tokens(self) -> int:
        high = sum(rows for rows, _ in self.sides[: -1 : self.columns])
        wide = sum(cols for _, cols in self.sides[: self.columns])
        rows, cols = self.sides[-1]
        return high * (wide + 1) + 1 + rows * (cols + 1)

    def run(self, features: Sequence[F32]) -> F32:
        """Each view's features (its rows * columns, D), in order, to the picture's tokens (N, D)."""
        *tiles, whole = (rows.reshape(*side, -1) for rows, side in zip(features, self.sides, strict=True))
        across = (tiles[first : first + self.columns] for first in range(0, len(tiles), self.columns))
        stitched = np.concatenate([np.concatenate(row, axis=1) for row in across])
        tiled = _ended(stitched, self.newline)
        return np.concatenate([tiled, self.separator[None], _ended(whole, self.newline)])


@dataclass(frozen=True)
class Pooled:
    """How a video's frames become tokens: each frame's map at half its sides, one behind the other, then a newline."""

    side: Grid  # of a frame's features
    views: int
    newline: F32 = field(compare=False, repr=False)

    @property
    def counts(self) -> tuple[int, ...]:
        """Features of each view."""
        return (math.prod(self.side),) * self.views

    @property
    def map(self) -> Grid:
        return -(-self.side[0] // 2), -(-self.side[1] // 2)

    @property
    def tokens(self) -> int:
        return self.views * math.prod(self.map) + 1

    def run(self, features: Sequence[F32]) -> F32:
        """Each frame's features (side rows * columns, D), in order, to the video's tokens (N, D)."""
        width = features[0].shape[-1]
        maps = (
            _resized(_resized(rows.reshape(*self.side, width), 0, self.map[0]), 1, self.map[1]) for rows in features
        )
        return np.concatenate([*(each.reshape(-1, width) for each in maps), self.newline[None]])


def _ended(cells: F32, newline: F32) -> F32:
    """Features (rows, columns, D) to tokens (rows * (columns + 1), D): a newline behind each row."""
    ends = np.broadcast_to(newline, (len(cells), 1, cells.shape[-1]))
    return np.concatenate([cells, ends], axis=1).reshape(-1, cells.shape[-1])


def _resized(x: F32, axis: int, size: int) -> F32:
    """Along one axis, bilinear between sample centres and without a wider filter for scaling down.

    Of torch's interpolate(mode="bilinear", align_corners=False), in its float32 arithmetic.
    """
    have = x.shape[axis]
    if have == size:
        return x
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * (np.float32(have) / np.float32(size))
    places = np.maximum(centres - np.float32(0.5), np.float32(0))
    first = np.minimum(places.astype(np.intp), have - 1)
    share = (places - first).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    after = np.minimum(first + 1, have - 1)
    mixed: F32 = x.take(first, axis) * (1 - share) + x.take(after, axis) * share
    return mixed
