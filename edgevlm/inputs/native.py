"""Rules that leave a picture near its own size, in whole units: docs/preprocessing.md, section 3."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs import grids
from edgevlm.inputs.squares import CheckedRule
from edgevlm.inputs.views import ResizeTo, View
from edgevlm.io import limits


@dataclass(frozen=True)
class Native(CheckedRule):
    """Near the picture's own size: both edges multiples of `unit`, `least` to `most` pixels in all (Qwen2-VL)."""

    unit: int
    least: int
    most: int
    kind: str = "native"

    def bounds(self) -> dict[str, int]:
        return {"least": min(self.most, limits.NATIVE_PIXELS), "most": limits.NATIVE_PIXELS}

    def edges(self, width: int, height: int) -> tuple[int, int]:
        return width, height

    def views(self, width: int, height: int, budget: int | None = None) -> list[View]:
        edges = self.edges(width, height)
        if max(edges) > 200 * min(edges):
            raise EdgeVLMError(
                f"A picture of {width} x {height} is more than 200 times as long as wide, which this model does not "
                "take: cut it into less elongated pieces first."
            )
        return [View((ResizeTo(*self.near(*edges)),))]

    def near(self, width: int, height: int) -> tuple[int, int]:
        return grids.near(width, height, self.unit, self.least, self.most, begin=0)


@dataclass(frozen=True)
class NativeGrown(Native):
    """The same, of a picture whose edges are at least `unit`: a shorter one is first scaled up to it (PaddleOCR-VL)."""

    kind: str = "native_grown"

    def edges(self, width: int, height: int) -> tuple[int, int]:
        if height < self.unit:
            width, height = round(width * self.unit / height), self.unit
        return (self.unit, round(height * self.unit / width)) if width < self.unit else (width, height)


@dataclass(frozen=True)
class NativeScaled(Native):
    """The same, of a picture that is first scaled up as a whole where an edge is shorter than `unit` (GLM-4.1V)."""

    kind: str = "native_scaled"

    def edges(self, width: int, height: int) -> tuple[int, int]:
        if min(width, height) >= self.unit:
            return width, height
        scale = max(self.unit / height, self.unit / width)
        return int(width * scale), int(height * scale)


@dataclass(frozen=True)
class NativeOrTiles(CheckedRule):
    """A picture near its own size, as `Native`; a larger one in the grid of tiles whose shape is nearest to its own.

    patch, unit: pixels per side of a patch and of a token. least, most: pixels of a view near the picture's own size.
    large: pixels of the picture in whole units, from which on it is cut. fewest, count: tiles; 1 and 1 cut none.
    thumbnail: the whole picture, near its own size, comes behind its tiles.
    """

    patch: int
    unit: int
    least: int
    most: int
    large: int
    side: int
    fewest: int
    count: int
    thumbnail: bool
    kind: str = "native_or_tiles"

    def bounds(self) -> dict[str, int]:
        least, most = min(self.most, limits.NATIVE_PIXELS), limits.NATIVE_PIXELS
        tiles = {"fewest": min(self.count, limits.GRID_TILES), "count": limits.GRID_TILES}
        return {"least": least, "most": most, "large": limits.COUNT} | tiles

    def views(self, width: int, height: int, budget: int | None = None) -> list[View]:
        whole = View((ResizeTo(*grids.near(width, height, self.unit, self.least, self.most, begin=self.unit)),))
        wide, high = (max(self.patch, round(edge / self.unit) * self.unit) for edge in (width, height))
        count = self.count if budget is None else min(self.count, budget - self.thumbnail)
        if wide * high <= self.large or count < max(2, self.fewest):
            return [whole]
        cols, rows = grids.nearest_grid(width, height, self.side, self.fewest, count)
        tiles = grids.tiles((ResizeTo(cols * self.side, rows * self.side),), self.side)
        return [*tiles, whole] if self.thumbnail else tiles


@dataclass(frozen=True)
class Filled(CheckedRule):
    """The largest view of the picture's shape whose edges are multiples of `unit` and that has at most `tokens` units.

    Smaller pictures are enlarged. One that would be less than a unit wide becomes a unit wide.
    """

    unit: int
    tokens: int
    kind: str = "filled"

    def bounds(self) -> dict[str, int]:
        unit = max(1, self.unit)  # its own bound refuses others
        return {"tokens": min(limits.VIEW_SIDE // unit, limits.NATIVE_PIXELS // unit**2)}

    def views(self, width: int, height: int, budget: int | None = None) -> list[View]:
        factor = math.sqrt(self.tokens * self.unit**2 / (width * height))
        wide, high = (math.floor(factor * edge / self.unit) for edge in (width, height))
        if high == 0:
            wide, high = min(width // height, self.tokens), 1
        elif wide == 0:
            wide, high = 1, min(height // width, self.tokens)
        return [View((ResizeTo(wide * self.unit, high * self.unit),))]


@dataclass(frozen=True)
class Within(CheckedRule):
    """The picture as it is, but no edge longer than `longest`; then edges stretched up to multiples of `unit`."""

    unit: int
    longest: int
    kind: str = "within"

    def views(self, width: int, height: int, budget: int | None = None) -> list[View]:
        ratio = max(height / self.longest, width / self.longest)
        size = (math.floor(width / ratio), math.floor(height / ratio)) if ratio > 1 else (width, height)
        if min(size) < 1:
            raise EdgeVLMError(
                f"A picture of {width} x {height} is less than a pixel wide at {self.longest} pixels of length: cut it "
                "into less elongated pieces first."
            )
        wide, high = (-(-edge // self.unit) * self.unit for edge in size)
        return [View((ResizeTo(wide, high),))]
