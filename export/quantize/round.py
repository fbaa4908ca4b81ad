"""The one quantizer: float weights to the codes and scales that every container then copies."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgevlm.bundle.qtensor import BLOCK, KINDS, PALETTES, QTensor
from edgevlm.errors import EdgeVLMError
from edgevlm.export.quantize.palettes import palettize
from edgevlm.types import F32

FP16_MAX = 65504.0
LIMITS = {"int8": (-127, 127), "int4": (-8, 7)}  # codes
# What the value of largest magnitude is divided by, for each scale that the search tries. The first is
# round-to-nearest's, so that a search never ends in a larger error; 4-bit codes are asymmetric: both signs are tried.
_DIVISORS = {
    "int4": (-8.0, -7.4, -6.8, -6.2, -8.6, -9.4, 7.0, 7.6, 8.4, 6.4, 5.8),
    "int8": (127.0, 122.0, 117.0, 110.0, 100.0),
}
_ROWS = 1 << 18  # values in work at once: they stay in the processor's cache, and memory near the tensor's own


def quantize(weight: F32, kind: str, name: str) -> QTensor:
    """Round `weight` (N, K) to nearest in `kind`; `name` is for error messages."""
    check(weight, kind, name)
    if kind == "fp32":
        return QTensor(kind, weight)
    if kind == "fp16":
        return QTensor(kind, weight.astype(np.float16))
    if kind in PALETTES:
        return palettize(weight, kind)
    part = _int8 if kind == "int8" else _int4
    step = max(1, _ROWS // weight.shape[1])
    codes, scales = zip(*(part(weight[i : i + step]) for i in range(0, len(weight), step)), strict=True)
    return QTensor(kind, np.concatenate(codes), np.concatenate(scales))


def search(weight: F32, kind: str, name: str, importance: F32) -> QTensor:
    """`weight` (N, K) with scales that minimize the squared error weighted by `importance` (K,), input by input.

    With the second moments of a layer's inputs as importance, that is the expected squared error of its outputs if the
    inputs were uncorrelated. As llama.cpp's make_qx_quants (ggml-quants.c): scales around the plain one are tried, each
    is refitted to its codes by least squares, and the best is kept. Never worse than `quantize`. No search for floats.
    """
    if kind not in LIMITS:
        return quantize(weight, kind, name)
    check(weight, kind, name)
    rows, columns = weight.shape
    width = BLOCK if kind == "int4" else columns
    blocks = weight.reshape(-1, width)
    importance = importance.reshape(-1, width)
    scale, codes = np.empty(len(blocks), np.float32), np.empty(blocks.shape, np.int8)
    step = max(1, _ROWS // width)
    for i in range(0, len(blocks), step):
        part = np.arange(i, min(i + step, len(blocks)))
        scale[part] = best_scale(blocks[part].T, importance[part % len(importance)].T, kind)
        codes[part] = nearest(blocks[part], scale[part, None], kind)
    return QTensor(kind, codes.reshape(rows, columns), scale.astype(np.float16).reshape(rows, -1))


def best_scale(values: F32, importance: F32, kind: str) -> F32:
    """(M,) float32 holding float16 values: a scale per block of `values` (B, M); importance is (B, M) or (B, 1)."""
    peak = np.take_along_axis(values, np.abs(values).argmax(0)[None], 0)[0]
    best = np.zeros(len(peak), np.float32)
    least = np.full(len(peak), np.inf, np.float32)
    weighted = importance * values
    for divisor in _DIVISORS[kind]:
        scale = half(peak / np.float32(divisor)) if kind == "int4" else half(np.abs(peak) / np.float32(divisor))
        codes = nearest(values, scale, kind).astype(np.float32)
        refitted = half((weighted * codes).sum(0) * reciprocal((importance * codes * codes).sum(0)))
        for tried, its in ((scale, codes), (refitted, nearest(values, refitted, kind))):
            error = values - its * tried
            loss = (importance * error * error).sum(0)
            better = loss < least
            best, least = np.where(better, tried, best), np.where(better, loss, least)
    return best


def nearest(values: F32, scale: F32, kind: str) -> npt.NDArray[np.int8]:
    """The codes of `values` under scales that broadcast against them."""
    low, high = LIMITS[kind]
    return np.asarray(np.clip(np.rint(values * reciprocal(scale)), low, high), dtype=np.int8)


def check(weight: F32, kind: str, name: str) -> None:
    """Refuse what `kind` cannot hold."""
    if kind not in KINDS:
        raise EdgeVLMError(f"Quantization '{kind}' is not available: choose one of {', '.join(KINDS)}.")
    low, high = (float(weight.min()), float(weight.max())) if weight.size else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise EdgeVLMError(f"The weight '{name}' holds NaN or infinity: the checkpoint is damaged; download it again.")
    if kind == "fp32":
        return
    limit = {"int8": FP16_MAX * 127, "int4": FP16_MAX * 8}.get(kind, FP16_MAX)
    if (peak := max(-low, high)) > limit:
        raise EdgeVLMError(
            f"The weight '{name}' reaches {peak:.3g}, more than {kind} can hold ({limit:.3g}): keep it in fp32."
        )
    if kind == "int4" and weight.shape[1] % BLOCK:
        raise EdgeVLMError(
            f"int4 is not available for '{name}': its {weight.shape[1]} inputs are no multiple of {BLOCK}; "
            "use int8 for it."
        )


Codes = npt.NDArray[np.int8]
Scales = npt.NDArray[np.float16]


def _int8(weight: F32) -> tuple[Codes, Scales]:
    scale = (np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)).astype(np.float16)
    inverse = reciprocal(scale.astype(np.float32))
    return np.clip(np.rint(weight * inverse), -127, 127).astype(np.int8), scale


def _int4(weight: F32) -> tuple[Codes, Scales]:
    """GGUF's Q4_0 rounding (ggml-quants.c, quantize_row_q4_0_ref): the value of largest magnitude gets code -8."""
    rows, columns = weight.shape
    blocks = weight.reshape(rows, columns // BLOCK, BLOCK)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2, keepdims=True), axis=2)
    scale = peak / np.float32(-8)
    shifted = blocks * reciprocal(scale) + np.float32(8.5)
    codes = (np.clip(np.trunc(shifted), 0, 15) - 8).astype(np.int8)
    return codes.reshape(rows, columns), scale[:, :, 0].astype(np.float16)


def half(scale: F32) -> F32:
    """Rounded to what float16 holds."""
    return np.clip(scale, -FP16_MAX, FP16_MAX).astype(np.float16).astype(np.float32)


def reciprocal(scale: F32) -> F32:
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    return np.where(np.isinf(inverse), np.float32(0), inverse)  # of zero, and of what fp16 holds as zero
