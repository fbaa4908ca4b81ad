"""The quantized tensor that containers hold: signed codes times fp16 scales, or indices into fp16 palettes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.types import F32

BLOCK = 32  # input values that share one int4 scale, as in GGUF's Q4_0
PREFILL = "prefill/"  # in weights.json, before the name of a weight in the form that the prompt's own graph holds
PALETTES = {"palette6": 6, "palette4": 4}  # bits of a code; only CoreML holds these
KINDS = ("fp32", "fp16", "int8", "int4", *PALETTES)


@dataclass(frozen=True)
class QTensor:
    """A weight (N, K) in one of `KINDS`.

    fp32, fp16: `codes` are the values. int8: codes -127..127, `scale` (N, 1). int4: codes -8..7, `scale` (N, K / 32). A
    value is `scale * code`; scales are float16. palette6, palette4: codes from 0 index `palette` (G, 64 or 16) float16,
    whose rows serve N / G rows of the weight each.
    """

    kind: str
    codes: npt.NDArray[Any]
    scale: npt.NDArray[np.float16] | None = None
    palette: npt.NDArray[np.float16] | None = None

    def dequantize(self) -> F32:
        """(N, K) float32, each value exactly `float32(scale) * code`, or its palette's entry."""
        if self.palette is not None:
            groups = self.codes.reshape(len(self.palette), -1)
            values = np.take_along_axis(self.palette.astype(np.float32), groups.astype(np.intp), axis=1)
            return values.reshape(self.codes.shape)
        if self.scale is None:
            return np.ascontiguousarray(self.codes, dtype=np.float32)
        rows, columns = self.codes.shape
        blocks = self.codes.reshape(rows, self.scale.shape[1], -1).astype(np.float32)
        blocks *= self.scale.astype(np.float32)[:, :, None]
        return blocks.reshape(rows, columns)

    def scale_per_block(self) -> npt.NDArray[np.float16]:
        """(N, K / 32): the int8 row scale repeated, as containers without per-channel scales hold it."""
        assert self.scale is not None
        blocks = self.codes.shape[1] // BLOCK
        return np.repeat(self.scale, blocks, axis=1) if self.scale.shape[1] == 1 else self.scale
