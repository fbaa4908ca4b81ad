"""How a learned square table of positions is spread over a grid of patches: rows of the table, and shares of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.types import F32, I64

KINDS = ("corners", "centers", "smooth", "cubic", "nearest", "bucketed", "stepped", "none")
SINGLE = ("nearest", "bucketed", "stepped")  # one row of the table
DENSE = ("smooth", "cubic")  # told as shares of every row of the table
_HALF, _SHARPNESS = np.float32(0.5), np.float32(-0.75)  # of torch's cubic (Keys 1981)
Axis = tuple[I64, int]  # the place of each patch along one axis, and how many there are


def resampled(kind: str, side: int, down: Axis, across: Axis) -> dict[str, npt.NDArray[Any]]:
    """The tower's inputs for P patches: table_shares (P, side^2), or table_rows and table_shares, (P, K) each.

    kind: "corners" is bilinear, the outermost patches on the outermost rows. Others keep centers in proportion:
    "centers" is bilinear, "smooth" a triangle filter that widens where the grid is smaller than the table, "cubic"
    torch's bicubic. "nearest" is one row, and so are "bucketed" and "stepped", by fractions that are rounded otherwise;
    "none" one of a table of columns and one of rows. In float32.
    """
    if kind in DENSE:
        shares = [(triangle if kind == "smooth" else cubic)(side, *axis) for axis in (down, across)]
        return {"table_shares": (shares[0][:, :, None] * shares[1][:, None]).reshape(len(down[0]), -1)}
    return dict(zip(("table_rows", "table_shares"), mixture(side, kind, *down, *across), strict=True))


def mixture(side: int, resample: str, row: I64, rows: int, col: I64, cols: int) -> tuple[I64, F32]:
    """The table's rows (P, K) around each patch and their shares: one where the nearest counts, two where one table is
    of columns and one, behind it, of rows, else four, bilinear.

    side: of the table. row, col: of each patch, in a grid of `rows` x `cols`. In float32.
    """
    if resample in SINGLE:
        line = {"nearest": nearest, "bucketed": bucketed, "stepped": stepped}[resample]
        flat = line(side, row, rows) * side + line(side, col, cols)
        return flat[:, None], np.ones((len(flat), 1), np.float32)
    if resample == "none":
        return np.stack([col, side + row], axis=1), np.ones((len(row), 2), np.float32)
    last = side - 1
    low, share = [], []
    for place, count in ((row, rows), (col, cols)):
        exact = place.astype(np.float32) * np.float32(last) / np.float32(max(count - 1, 1))
        if resample == "centers":
            half = np.float32(0.5)
            exact = (place.astype(np.float32) + half) * np.float32(side) / np.float32(count) - half
        low.append(np.floor(exact).astype(np.int64))
        share.append(exact - np.floor(exact))
    places = [np.clip(start[:, None] + (0, 1), 0, last) for start in low]
    shares = [np.stack([1 - part, part], axis=1) for part in share]
    flat = places[0][:, :, None] * side + places[1][:, None]
    return flat.reshape(-1, 4), (shares[0][:, :, None] * shares[1][:, None]).reshape(-1, 4)


def triangle(side: int, place: I64, count: int) -> F32:
    """Shares (P, side) of the table's lines along one axis, as Siglip2VisionEmbeddings takes them, in float32."""
    scale = np.float32(side) / np.float32(count)
    centre = (place.astype(np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    off = np.abs(np.arange(side, dtype=np.float32) - centre[:, None])
    shares = np.maximum(1 - off / max(scale, np.float32(1)), np.float32(0))
    found: F32 = shares / shares.sum(-1, keepdims=True)
    return found


def cubic(side: int, place: I64, count: int) -> F32:
    """The same, as grid_sample takes them with padding_mode="border": beyond an edge stands its own line."""
    exact = (place.astype(np.float32) + _HALF) * np.float32(side) / np.float32(count) - _HALF
    low = np.floor(exact)
    shares = np.zeros((len(place), side), np.float32)
    for step in range(-1, 3):
        off = np.abs(exact - low - np.float32(step))
        near = ((_SHARPNESS + 2) * off - (_SHARPNESS + 3)) * off * off + 1
        far = (((off - 5) * off + 8) * off - 4) * _SHARPNESS
        lines = np.clip(low.astype(np.int64) + step, 0, side - 1)
        shares[np.arange(len(place)), lines] += np.where(off <= 1, near, far)
    return shares


def nearest(side: int, place: I64, count: int) -> I64:
    """The line of the table (P,) in whose bucket the fraction place / count lies: get_vision_nearest_position_ids."""
    return buckets(side, place.astype(np.float32) / np.float32(count))


def bucketed(side: int, place: I64, count: int) -> I64:
    """The same of fractions that torch.arange counts up in steps of 1 / count."""
    return buckets(side, _torch_arange(0, 1 - 1e-6, 1 / count)[place])


def stepped(side: int, place: I64, count: int) -> I64:
    """The same of fractions that are a place times the float32 nearest to 1 / count: Idefics2's."""
    fractions = place.astype(np.float32) * (np.float32(1) / np.float32(count))
    return buckets(side, np.minimum(fractions, np.float32(1.0 - 1e-6)))


def buckets(side: int, fractions: F32) -> I64:
    """Which of `side` equal buckets each of some float32 fractions is in, by bounds that are rounded as torch's are."""
    found: I64 = np.searchsorted(_torch_arange(1 / side, 1.0, 1 / side), fractions, side="right").astype(np.int64)
    return found


def _torch_arange(start: float, end: float, step: float) -> F32:
    """torch.arange in float32 as its AVX2 kernel computes it (aten/src/ATen/native/cpu/RangeFactoriesKernel.cpp).

    Whole pairs of 8-lane vectors round their first lane to float32 before the lanes are added in double; the rest is
    computed in double. That moves some boundaries by one unit in the last place, which decides between buckets.
    """
    count = math.ceil((end - start) / step)
    index = np.arange(count)
    exact = start + step * index
    bases = exact[index // 8 * 8].astype(np.float32).astype(np.float64)
    in_vectors = index < count // 16 * 16
    return np.where(in_vectors, bases + step * (index % 8), exact).astype(np.float32)
