"""The types that many modules speak of: arrays by dtype, and what long work reports."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
Ids = I64
"""Token ids (n,)."""
Progress = Callable[[str, int, int], None]
"""progress(what, done, total): `done` of `total` units of the stage `what` are finished."""
