"""The one quantizer: float weights to the codes and scales that every container then copies."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgevlm.errors import EdgeVLMError
from edgevlm.export.palettize import palettize
from edgevlm.qtensor import BLOCK, KINDS, PALETTES, QTensor

F32 = npt.NDArray[np.float32]
FP16_MAX = 65504.0


def quantize(weight: F32, kind: str, name: str) -> QTensor:
    """Round `weight` (N, K) to nearest in `kind`; `name` is for error messages."""
    if kind not in KINDS:
        raise EdgeVLMError(f"Quantization '{kind}' is not available: choose one of {', '.join(KINDS)}.")
    if not np.isfinite(weight).all():
        raise EdgeVLMError(f"The weight '{name}' holds NaN or infinity: the checkpoint is damaged; download it again.")
    if kind == "fp32":
        return QTensor(kind, weight)
    limit = {"int8": FP16_MAX * 127, "int4": FP16_MAX * 8}.get(kind, FP16_MAX)
    if weight.size and (peak := float(np.abs(weight).max())) > limit:
        raise EdgeVLMError(
            f"The weight '{name}' reaches {peak:.3g}, more than {kind} can hold ({limit:.3g}): keep it in fp32."
        )
    if kind == "fp16":
        return QTensor(kind, weight.astype(np.float16))
    if kind in PALETTES:
        return palettize(weight, kind)
    return _int8(weight) if kind == "int8" else _int4(weight, name)


def _int8(weight: F32) -> QTensor:
    scale = (np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)).astype(np.float16)
    inverse = _reciprocal(scale.astype(np.float32))
    codes = np.clip(np.rint(weight * inverse), -127, 127).astype(np.int8)
    return QTensor("int8", codes, scale)


def _int4(weight: F32, name: str) -> QTensor:
    """GGUF's Q4_0 rounding (ggml-quants.c, quantize_row_q4_0_ref): the value of largest magnitude gets code -8."""
    rows, columns = weight.shape
    if columns % BLOCK:
        raise EdgeVLMError(
            f"int4 is not available for '{name}': its {columns} inputs are no multiple of {BLOCK}; use int8 for it."
        )
    blocks = weight.reshape(rows, columns // BLOCK, BLOCK)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2, keepdims=True), axis=2)
    scale = peak / np.float32(-8)
    shifted = blocks * _reciprocal(scale) + np.float32(8.5)
    codes = (np.clip(np.trunc(shifted), 0, 15) - 8).astype(np.int8)
    return QTensor("int4", codes.reshape(rows, columns), scale[:, :, 0].astype(np.float16))


def _reciprocal(scale: F32) -> F32:
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(scale == 0, np.float32(0), np.float32(1) / scale)
