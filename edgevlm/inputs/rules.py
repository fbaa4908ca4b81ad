"""What each family's image processor does to a picture of some size, as values: docs/preprocessing.md, section 3.

Every rule has `views(width, height, budget)`: the views in the order in which the prompt names them. A budget is the
most views that a picture may have; None leaves it to the rule, and rules without tiles have no use for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs import grids
from edgevlm.inputs.check import check
from edgevlm.inputs.native import Filled, Native, NativeGrown, NativeOrTiles, NativeScaled, Within
from edgevlm.inputs.slices import WholeThenSlices
from edgevlm.inputs.squares import CheckedRule, Crop, Fit, Pad, Stretch
from edgevlm.inputs.views import CropTo, PadTo, ResizeTo, Sheet, View
from edgevlm.io import limits

_THIN = 10  # pixels


@dataclass(frozen=True)
class TilesThenWhole(CheckedRule):
    """A grid of tiles and then the whole picture.

    longest_edge: the picture is first scaled to it, and then, if that is larger, down to max_edge; None leaves it as it
    is. short_edge_multiple: of this first resize. split: False for the whole picture alone.
    """

    side: int
    longest_edge: int | None
    max_edge: int
    short_edge_multiple: int
    split: bool
    kind: str = "tiles_then_whole"

    def views(self, width: int, height: int, budget: int | None = None) -> list[View]:
        if self.split and budget != 1:
            for edge in self._longest_edges(width, height, budget):
                canvas = self._canvas(width, height, edge)
                if canvas[-1].width == canvas[-1].height == self.side:
                    return [View(canvas)]
                if budget is None or grids.count(canvas, self.side) < budget:
                    return [*grids.tiles(canvas, self.side), View((*canvas, ResizeTo(self.side, self.side)))]
        return [View((*self._scale(width, height, self.longest_edge), ResizeTo(self.side, self.side)))]

    def _longest_edges(self, width: int, height: int, budget: int | None) -> Iterator[int | None]:
        """The longest edges that a budget may fall back to: the rule's own, then whole numbers of tiles, from 2 up."""
        yield self.longest_edge
        if budget is None:
            return
        largest = min(self.longest_edge or max(width, height), self.max_edge)
        # `count` tiles along the long edge are at least count + 1 views in all.
        for count in range(min((largest - 1) // self.side, budget - 1), 1, -1):
            yield count * self.side

    def _canvas(self, width: int, height: int, longest_edge: int | None) -> tuple[ResizeTo, ...]:
        """The resizes to a whole number of tiles."""
        side, scaled = self.side, self._scale(width, height, longest_edge)
        if scaled:
            width, height = scaled[0].width, scaled[0].height
        aspect = width / height
        if width >= height:
            width = math.ceil(width / side) * side
            height = math.ceil(int(width / aspect) / side) * side
        else:
            height = math.ceil(height / side) * side
            width = math.ceil(int(height * aspect) / side) * side
        return (*scaled, ResizeTo(width, height))

    def _scale(self, width: int, height: int, longest_edge: int | None) -> tuple[ResizeTo, ...]:
        """The first resize, if any."""
        if longest_edge is None:
            return ()
        multiple = self.short_edge_multiple
        aspect = width / height
        if width >= height:
            width = longest_edge
            height = max(-(-int(width / aspect) // multiple) * multiple, 1)
        else:
            height = longest_edge
            width = max(-(-int(height * aspect) // multiple) * multiple, 1)
        aspect = width / height
        if width >= height and width > self.max_edge:
            width = self.max_edge
            height = max(int(width / aspect), 1)
        elif height > width and height > self.max_edge:
            height = self.max_edge
            width = max(int(height * aspect), 1)
        return (ResizeTo(width, height),)


@dataclass(frozen=True)
class WholeThenTiles(CheckedRule):
    """The picture on a grid of whole tiles: first all of it on one, then the tiles.

    longest_edge: more is scaled down to it. enlarge: less is scaled up. whole_resample: of the whole picture.
    """

    side: int
    longest_edge: int
    enlarge: bool
    whole_resample: str
    kind: str = "whole_then_tiles"

    def views(self, width: int, height: int, budget: int | None = None) -> list[View]:
        side, long = self.side, max(width, height)
        edge = self.longest_edge if self.enlarge else min(self.longest_edge, math.ceil(long / side) * side)
        for tried in range(edge, side, -side):
            canvas = self._canvas(width, height, tried)
            if budget is None or grids.count(canvas, side) < budget:
                return [View((*canvas, ResizeTo(side, side, self.whole_resample))), *grids.tiles(canvas, side)]
        return [View((ResizeTo(side, side),))]

    def _canvas(self, width: int, height: int, edge: int) -> tuple[ResizeTo, ...]:
        side, long, short = self.side, max(width, height), min(width, height)
        other = max(math.ceil(short * (edge / long) / side) * side, side)
        return (ResizeTo(*((edge, other) if width >= height else (other, edge))),)


@dataclass(frozen=True)
class Dense:
    """Pictures that are cut into up to `most` tiles: scaled by less than `scale` in width otherwise, and of more than
    `above` and up to `below` times their height in width. None: whatever."""

    most: int
    scale: float | None
    above: float | None
    below: float | None

    def __post_init__(self) -> None:
        check(1 <= self.most <= limits.GRID_TILES, "image", "dense.most", f"1 to {limits.GRID_TILES}", self.most)


@dataclass(frozen=True)
class RatioTiles(CheckedRule):
    """The grid of `least` to `most` tiles whose shape is nearest to the picture's.

    thumbnail: the whole picture comes last, where there are several tiles. longest: tiles per side, at most.
    numbered: a single view is the tile in row 1, column 1. dense: pictures with another `most`.
    """

    side: int
    least: int
    most: int
    thumbnail: bool
    longest: int | None = None
    numbered: bool = False
    dense: Dense | None = None
    kind: str = "ratio_tiles"

    def bounds(self) -> dict[str, int]:
        return dict.fromkeys(("most", "longest"), limits.GRID_TILES) | {"least": min(self.most, limits.GRID_TILES)}

    def views(self, width: int, height: int, budget: int | None = None) -> list[View]:
        most = self.dense.most if self.dense and self._is_dense(width, height, self.dense) else self.most
        most = most if budget is None else min(most, max(1, budget - self.thumbnail))
        cols, rows = grids.nearest_grid(width, height, self.side, min(self.least, most), most, self.longest)
        whole = View((ResizeTo(self.side, self.side),))
        if cols * rows == 1 and not self.numbered:
            return [whole]
        tiles = grids.tiles((ResizeTo(cols * self.side, rows * self.side),), self.side)
        return [*tiles, whole] if self.thumbnail and len(tiles) > 1 else tiles

    def _is_dense(self, width: int, height: int, dense: Dense) -> bool:
        shape = width / height
        if (dense.above is not None and shape <= dense.above) or (dense.below is not None and shape > dense.below):
            return False
        cols, _ = grids.nearest_grid(width, height, self.side, self.least, self.most, self.longest)
        return dense.scale is None or cols * self.side / width < dense.scale


@dataclass(frozen=True)
class BestGrid(CheckedRule):
    """The picture stretched to one view, then its tiles on the grid of `grids` that shows most of its pixels.

    There it keeps its shape, in the middle of a black canvas ("anyres").
    """

    side: int
    grids: tuple[tuple[int, int], ...]  # rows and columns of tiles; of equal ones the first
    kind: str = "best_grid"

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = [rows * cols if min(rows, cols) > 0 else 0 for rows, cols in self.grids]
        good = 1 <= len(counts) <= limits.GRIDS and all(1 <= count <= limits.GRID_TILES for count in counts)
        check(good, "image", "grids", f"1 to {limits.GRIDS}, of 1 to {limits.GRID_TILES} tiles each", self.grids)

    def views(self, width: int, height: int, budget: int | None = None) -> list[View]:
        side, whole = self.side, View((ResizeTo(self.side, self.side),))
        fitting = [grid for grid in self.grids if budget is None or grid[0] * grid[1] < budget]
        if not fitting:
            return [whole]
        rows, cols = grids.fullest_grid(width, height, side, fitting)
        return [whole, *grids.tiles(grids.centred(width, height, cols * side, rows * side), side)]


@dataclass(frozen=True)
class CoveringTiles(CheckedRule):
    """The picture stretched to one view; where that shows too little of it, then its tiles on the smallest grid that
    shows enough.
    """

    side: int
    most: int
    kind: str = "covering_tiles"

    def bounds(self) -> dict[str, int]:
        return {"most": limits.GRID_TILES}

    def views(self, width: int, height: int, budget: int | None = None) -> list[View]:
        side, whole = self.side, View((ResizeTo(self.side, self.side),))
        most = self.most if budget is None else max(1, min(self.most, budget - 1))
        cols, rows = grids.covering_grid(width, height, side, most)
        tiles = grids.tiles((ResizeTo(cols * side, rows * side),), side)
        return [whole, *tiles] if cols * rows > 1 else [whole]


@dataclass(frozen=True)
class PaddedTiles(CheckedRule):
    """The picture in its own shape at the top left of a canvas of up to `most` tiles: as many as it covers, or the
    grid whose shape is nearest. Tiles lack the whole patches of padding. Then the canvas, scaled to one view.

    patch, unit: pixels per side of a patch and of a token. whole_resample: of the whole picture.
    """

    side: int
    patch: int
    unit: int
    most: int
    color: tuple[int, int, int]
    whole_resample: str
    kind: str = "padded_tiles"

    def bounds(self) -> dict[str, int]:
        return {"most": limits.GRID_TILES}

    def views(self, width: int, height: int, budget: int | None = None) -> list[View]:
        side, most = self.side, self.most if budget is None else max(1, min(self.most, budget - 1))
        cols, rows = math.ceil(width / side), math.ceil(height / side)
        if cols * rows > most:
            cols, rows = grids.nearest_grid(width, height, side, 1, most)
        wide, high = cols * side, rows * side
        across, down = wide / width, high / height
        size = (wide, int(height * across)) if across < down else (int(width * down), high)
        if min(size) < _THIN:
            raise EdgeVLMError(f"A picture of {width} x {height} is too elongated for this model: cut it into pieces.")
        canvas = (ResizeTo(*size), PadTo(wide, high, 0, 0, self.color))
        shown = wide - self._hidden(wide - size[0]), high - self._hidden(high - size[1])
        whole = View((*canvas, ResizeTo(side, side, self.whole_resample)))
        return [*grids.tiles(canvas, side, shown), whole]

    def _hidden(self, padding: int) -> int:
        return padding // self.patch * self.patch


@dataclass(frozen=True)
class OverlappingTiles(CheckedRule):
    """One sheet: the picture stretched to a square, and up to `most` crops of it that overlap by two margins."""

    side: int
    margin: int
    most: int
    kind: str = "overlapping_tiles"

    def bounds(self) -> dict[str, int]:
        return {"margin": (self.side - 1) // 2, "most": limits.GRID_TILES}

    def views(self, width: int, height: int, budget: int | None = None) -> list[View]:
        side, both = self.side, 2 * self.margin
        most = self.most if budget is None else max(1, min(self.most, budget - 1))
        rows, cols = grids.overlapping_grid(width - both, height - both, side - both, most)
        canvas = ResizeTo(cols * (side - both) + both, rows * (side - both) + both)
        crops = (CropTo(col * (side - both), row * (side - both), side, side) for row, col in np.ndindex(rows, cols))
        parts = (View((ResizeTo(side, side),)), *(View((canvas, crop)) for crop in crops))
        return [View((Sheet(parts, cols),))]


Rule = (
    Stretch | Crop | Pad | Fit | TilesThenWhole | WholeThenTiles | RatioTiles | BestGrid | CoveringTiles | Within
    | Native | NativeGrown | NativeScaled | NativeOrTiles | WholeThenSlices | Filled
    | OverlappingTiles | PaddedTiles
)  # fmt: skip
