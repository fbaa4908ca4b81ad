"""Names of types that many modules use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and of how much."""
