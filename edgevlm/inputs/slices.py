"""Views of about one area in the picture's own shape: all of it, then the slices of a large one (arXiv 2403.11703)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgevlm.inputs import grids
from edgevlm.inputs.squares import CheckedRule
from edgevlm.inputs.views import ResizeTo, View
from edgevlm.io import limits


@dataclass(frozen=True)
class WholeThenSlices(CheckedRule):
    """The picture at about side x side pixels; behind it, of a larger one, as many slices as it has that area.

    unit: edges of views are multiples of it. most: slices of a picture; 1 cuts none.
    """

    unit: int
    side: int
    most: int
    kind: str = "whole_then_slices"

    def bounds(self) -> dict[str, int]:
        return {"most": limits.GRID_TILES}

    def views(self, width: int, height: int, budget: int | None = None) -> list[View]:
        cols, rows = self._grid(width, height, self.most if budget is None else min(self.most, budget - 1))
        whole = View((ResizeTo(*self._near(width, height)),))
        if cols * rows == 1:
            return [whole]
        wide, high = self._near(_multiple(width, cols) / cols, _multiple(height, rows) / rows)
        return [whole, *grids.parts((ResizeTo(cols * wide, rows * high),), wide, high)]

    def _near(self, width: float, height: float) -> tuple[int, int]:
        """Width and height of that area in the same shape."""
        shape = width / height
        high = int(self.side / math.sqrt(shape))
        return _multiple(int(high * shape), self.unit), _multiple(high, self.unit)

    def _grid(self, width: int, height: int, most: int) -> tuple[int, int]:
        """Columns and rows of slices, of which one is none."""
        count = min(math.ceil(width * height / self.side**2), most)
        if count <= 1:
            return 1, 1
        shape, best, gap = math.log(width / height), (1, 1), math.inf
        for number in range(max(2, count - 1), min(count + 1, most) + 1):
            for rows in (rows for rows in range(1, number + 1) if number % rows == 0):
                off = abs(shape - math.log(number // rows / rows))
                if off < gap or (off == gap and rows > best[1]):
                    best, gap = (number // rows, rows), off
        return best


def _multiple(length: float, unit: int) -> int:
    return max(round(length / unit) * unit, unit)
