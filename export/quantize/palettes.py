"""Palettes: codes that index a short list of values, the Neural Engine's own compressed form of a weight."""

from __future__ import annotations

import math

import numpy as np

from edgevlm.bundle.qtensor import PALETTES, QTensor
from edgevlm.types import F32, F64, I64

# Rows that share a palette. 32 lists of 64 fp16 values add 1 % to a matrix 576 wide; with 16 values, lists shared by 32
# rows ruined a language model where 8 rows did not (apple/coreai-models PR #196).
ROWS = {"palette6": 32, "palette4": 8}
_MOVES, _STEPS = 64, 4


def palettize(weight: F32, kind: str) -> QTensor:
    """`weight` (N, K) with one palette for each `ROWS[kind]` rows (fewer where these do not divide N).

    Palettes are the means of one-dimensional k-means (Lloyd 1982) over a group's values, in float16 and ascending.
    They start from the density that is best for many values, the cube root of the weights' own (Panter and Dite 1951),
    and single entries move to where they are missed until that no longer pays: within a tenth of the least error.
    """
    rows, columns = weight.shape
    group = math.gcd(rows, ROWS[kind])
    entries = 1 << PALETTES[kind]
    codes = np.empty((rows // group, group * columns), np.uint8)
    palettes = np.empty((rows // group, entries), np.float16)
    for i, values in enumerate(weight.reshape(rows // group, -1)):
        palettes[i] = np.sort(_means(values, entries).astype(np.float16))
        ours = palettes[i].astype(np.float32)
        codes[i] = np.searchsorted((ours[1:] + ours[:-1]) / 2, values)
    return QTensor(kind, codes.reshape(rows, columns), palette=palettes)


def _means(values: F32, entries: int) -> F64:
    ordered = np.sort(values)
    exact = ordered.astype(np.float64)
    sums, squares = (np.concatenate([[0.0], np.cumsum(x)]) for x in (exact, exact * exact))
    means = _start(ordered, entries)
    moving = _MOVES
    while moving >= 0:
        for _ in range(_STEPS if moving else 2 * _STEPS):
            cuts = np.searchsorted(ordered, ((means[1:] + means[:-1]) / 2).astype(np.float32))
            cuts = np.concatenate([[0], cuts, [len(ordered)]])
            counts = np.diff(cuts)
            means = np.where(counts > 0, np.diff(sums[cuts]) / np.maximum(counts, 1), means)
        errors = np.diff(squares[cuts]) - counts * means**2
        moving = moving - 1 if not moving or _move(means, counts, errors) else 0
    return means


def _move(means: F64, counts: I64, errors: F64) -> bool:
    """Take the entry that is missed least to where one more gains most, in place; whether that was worth it.

    Two neighbours become one at the price of their distance; a second entry takes 3/4 of an even spread's error.
    """
    pairs = counts[1:] * counts[:-1] / np.maximum(counts[1:] + counts[:-1], 1)
    price = pairs * np.square(np.diff(means))
    least, worst = int(price.argmin()), int(errors.argmax())
    if worst in (least, least + 1) or price[least] >= errors[worst] * 3 / 4:
        return False
    apart = np.sqrt(errors[worst] / counts[worst])
    both = counts[least] + counts[least + 1]
    if both:
        means[least] = (means[least] * counts[least] + means[least + 1] * counts[least + 1]) / both
    means[least + 1], means[worst] = means[worst] + apart, means[worst] - apart
    means.sort()
    return True


def _start(ordered: F32, entries: int) -> F64:
    """A density of entries as the cube root of the values' own: between two neighbours, their distance to the 2/3."""
    share = np.concatenate([[0.0], np.cumsum(np.cbrt(np.diff(ordered)) ** 2 + 1e-30, dtype=np.float64)])
    return np.asarray(np.interp((np.arange(entries) + 0.5) / entries * share[-1], share, ordered))
