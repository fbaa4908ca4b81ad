"""Which patches lie around each on a picture's grid, for convolutions over patches in any order."""

from __future__ import annotations

import numpy as np

from edgevlm.types import I64


def neighbours(at: I64, rows: int, cols: int, kernel: int) -> I64:
    """(P, kernel^2) where the patches around each lie among all P, counted from 1; 0 beyond the picture.

    at: (P,) the place of each patch in raster order, -1 for padding, which has no neighbours and is none.
    """
    half, places = kernel // 2, np.flatnonzero(at >= 0)
    row, col = at[places] // cols, at[places] % cols
    around = np.zeros((rows + 2 * half, cols + 2 * half), np.int64)
    around[row + half, col + half] = places + 1
    down, across = np.indices((kernel, kernel)).reshape(2, -1)
    found = np.zeros((len(at), kernel**2), np.int64)
    found[places] = around[row[:, None] + down, col[:, None] + across]
    return found


def moved(near: I64, start: int) -> I64:
    """The same where the picture's patches begin at `start`."""
    found: I64 = near + start * (near > 0)
    return found
