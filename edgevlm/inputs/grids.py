"""Tiles: which grid of them a picture takes, and the views that they are."""

from __future__ import annotations

import math

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.views import Color, CropTo, PadTo, Step, View
from edgevlm.io import limits


def nearest_grid(width: int, height: int, side: int, least: int, most: int) -> tuple[int, int]:
    """Columns and rows, `least` to `most` tiles in all, whose shape is nearest to the picture's."""
    grids = [(c, r) for c in range(1, most + 1) for r in range(1, most // c + 1) if c * r >= least]
    best, gap = (1, 1), math.inf
    for cols, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        off = abs(width / height - cols / rows)
        # Of grids that fit equally well, the larger one, as long as the picture has half its pixels.
        if off < gap or (off == gap and width * height > 0.5 * side * side * cols * rows):
            best, gap = (cols, rows), off
    return best


def count(canvas: tuple[Step, ...], side: int) -> int:
    """Tiles on a canvas."""
    return (canvas[-1].width // side) * (canvas[-1].height // side)


def tiles(canvas: tuple[Step, ...], side: int) -> list[View]:
    """Row by row."""
    if (number := count(canvas, side)) > limits.VIEWS:
        raise EdgeVLMError(
            f"A picture would be cut into {number} tiles of {side} pixels, at most {limits.VIEWS} are made: "
            "scale it down first, or export the bundle again."
        )
    cols, rows = canvas[-1].width // side, canvas[-1].height // side
    return [
        View((*canvas, CropTo(col * side, row * side, side, side)), (row + 1, col + 1))
        for row in range(rows)
        for col in range(cols)
    ]


def square(width: int, height: int, color: Color) -> tuple[PadTo, ...]:
    side = max(width, height)
    return () if width == height else (PadTo(side, side, (side - width) // 2, (side - height) // 2, color),)
