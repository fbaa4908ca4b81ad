"""Sizes in whole units, and tiles: which grid of them a picture takes, and the views that they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.views import Color, CropTo, PadTo, ResizeTo, Step, View
from edgevlm.io import limits

_ENOUGH = 0.9  # of a picture's pixels


def near(
    width: int, height: int, unit: int, least: int, most: int, begin: int, frames: int = 1, group: int = 1
) -> tuple[int, int]:
    """Width and height near these: multiples of `unit`, at least one each, `least` to `most` pixels in all.

    begin: the least that an edge is rounded to before the pixels are counted. frames: so many pictures have the pixels
    together, which are first counted in whole groups of `group`.
    """
    wide, high = (max(begin, round(edge / unit) * unit) for edge in (width, height))
    pixels = round(frames / group) * group * wide * high
    if pixels > most:
        beta = math.sqrt(frames * height * width / most)
        return max(unit, math.floor(width / beta / unit) * unit), max(unit, math.floor(height / beta / unit) * unit)
    if pixels < least:
        beta = math.sqrt(least / (frames * height * width))
        return math.ceil(width * beta / unit) * unit, math.ceil(height * beta / unit) * unit
    return wide, high


def nearest_grid(
    width: int, height: int, side: int, least: int, most: int, longest: int | None = None
) -> tuple[int, int]:
    """Columns and rows, `least` to `most` tiles in all, `longest` per side, whose shape is nearest to the picture's."""
    best, gap = (1, 1), math.inf
    for cols, rows in _grids(least, most):
        if longest is not None and max(cols, rows) > longest:
            continue
        off = abs(width / height - cols / rows)
        # Of grids that fit equally well, the larger one, as long as the picture has half its pixels.
        if off < gap or (off == gap and width * height > 0.5 * side * side * cols * rows):
            best, gap = (cols, rows), off
    return best


def _grids(least: int, most: int) -> list[tuple[int, int]]:
    """Columns and rows of every grid of `least` to `most` tiles, by their number, then by columns."""
    found = [(c, r) for c in range(1, most + 1) for r in range(1, most // c + 1) if c * r >= least]
    return sorted(found, key=math.prod)


def fullest_grid(width: int, height: int, side: int, offered: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Rows and columns of the grid that shows most pixels of the picture; of equal ones, that which leaves least empty,
    and then the first."""

    def worth(grid: tuple[int, int]) -> tuple[int, int]:
        wide, high = grid[1] * side, grid[0] * side
        scale = min(wide / width, high / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return shown, shown - wide * high

    return max(offered, key=worth)


def centred(width: int, height: int, wide: int, high: int) -> tuple[ResizeTo, PadTo]:
    """A picture of width x height in its own shape in the middle of a black canvas of wide x high."""
    across, down = wide / width, high / height
    if across < down:
        size = wide, min(math.ceil(height * across), high)
    else:
        size = min(math.ceil(width * down), wide), high
    return ResizeTo(*size), PadTo(wide, high, (wide - size[0]) // 2, (high - size[1]) // 2, (0, 0, 0))


def covering_grid(width: int, height: int, side: int, most: int) -> tuple[int, int]:
    """Columns and rows of the smallest grid of up to `most` tiles that shows enough of the picture, or of the one that
    shows most. The share that counts for n columns and m rows is that of n rows and m columns, as in the processors
    that cut pictures so.
    """
    shares = {grid: _shown(width, height, side, *grid) for grid in _grids(1, most)}
    if enough := [grid for grid, share in shares.items() if share > _ENOUGH]:
        return min(enough, key=lambda grid: (math.prod(grid), -shares[grid]))
    return min(shares, key=lambda grid: (-shares[grid], math.prod(grid)))


def _shown(width: int, height: int, side: int, rows: int, cols: int) -> float:
    """Of the picture's pixels, those that its parts have once they are scaled down to `side`; the last parts take what
    is left over.
    """
    heights = [height // rows] * (rows - 1) + [height - height // rows * (rows - 1)]
    widths = [width // cols] * (cols - 1) + [width - width // cols * (cols - 1)]
    parts = ((max(w, h), min(w, h)) for h in heights for w in widths)
    total = 0.0
    for long, short in parts:  # not sum(), which since Python 3.12 adds otherwise, and of near grids chooses another
        total += side * (short / long * side) if long > side else long * short
    return total / (width * height)


def overlapping_grid(width: int, height: int, step: int, most: int) -> tuple[int, int]:
    """Rows and columns of up to `most` crops that are `step` pixels apart, for a picture without its margins of that
    size: as many as its pixels fill, or else more of the picture's shape.
    """
    if height <= step or width <= step:
        return 1, 1
    high, wide = math.ceil(height / step), math.ceil(width / step)
    if high * wide > most:
        ratio = math.sqrt(most / (high * wide))
        return max(1, math.floor(high * ratio)), max(1, math.floor(wide * ratio))
    rows = max(math.floor(math.sqrt(most * height / width)), high)
    cols = max(math.floor(math.sqrt(most * width / height)), wide)
    if rows * cols > most:
        rows, cols = (rows, most // rows) if cols > rows else (most // cols, cols)
    return max(1, rows), max(1, cols)


def count(canvas: tuple[Step, ...], side: int) -> int:
    """Tiles on a canvas."""
    return (canvas[-1].width // side) * (canvas[-1].height // side)


def tiles(canvas: tuple[Step, ...], side: int, shown: tuple[int, int] | None = None) -> list[View]:
    """Squares, row by row. shown: width and height that they are cut off at; None: of the canvas."""
    found = parts(canvas, side, side)
    return found if shown is None else [cropped(view, shown) for view in found]


def cropped(tile: View, shown: tuple[int, int]) -> View:
    """A tile without what lies beyond some width and height of its canvas."""
    *canvas, crop = tile.steps
    assert isinstance(crop, CropTo)
    size = min(crop.width, shown[0] - crop.left), min(crop.height, shown[1] - crop.top)
    return View((*canvas, CropTo(crop.left, crop.top, *size)), tile.place)


def parts(canvas: tuple[Step, ...], wide: int, high: int) -> list[View]:
    """Rectangles, row by row."""
    cols, rows = canvas[-1].width // wide, canvas[-1].height // high
    if (number := cols * rows) > limits.VIEWS:
        raise EdgeVLMError(
            f"A picture would be cut into {number} tiles of {wide} x {high} pixels, at most {limits.VIEWS} are made: "
            "scale it down first, or export the bundle again."
        )
    return [
        View((*canvas, CropTo(col * wide, row * high, wide, high)), (row + 1, col + 1))
        for row in range(rows)
        for col in range(cols)
    ]


def square(width: int, height: int, color: Color) -> tuple[PadTo, ...]:
    side = max(width, height)
    return () if width == height else (PadTo(side, side, (side - width) // 2, (side - height) // 2, color),)
