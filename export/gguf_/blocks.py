"""A QTensor's codes and scales in ggml's block layouts (ggml-common.h: block_q4_0, block_q8_0). Nothing is rounded."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from edgevlm.bundle.qtensor import BLOCK, QTensor
from edgevlm.types import U8

_TYPES = {
    "fp32": GGMLQuantizationType.F32,
    "fp16": GGMLQuantizationType.F16,
    "int8": GGMLQuantizationType.Q8_0,
    "int4": GGMLQuantizationType.Q4_0,
}


def ggml_type(kind: str, columns: int) -> GGMLQuantizationType:
    """The container of a weight with `columns` inputs.

    int8 rows that blocks of 32 do not divide (SigLIP-SO400M has 4304 inputs) are stored as the float32 products
    of code and scale: larger, and still the same values as in every other target.
    """
    if kind == "int8" and columns % BLOCK:
        return GGMLQuantizationType.F32
    return _TYPES[kind]


def nbytes(kind: GGMLQuantizationType, shape: tuple[int, ...]) -> int:
    """Bytes of a whole tensor of that type."""
    block, size = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // int(block) * int(size)


def pack(tensor: QTensor, kind: GGMLQuantizationType) -> npt.NDArray[np.generic]:
    """The bytes of `tensor` as ggml type `kind`: uint8 (N, bytes per row) for blocks, else the values."""
    if kind == GGMLQuantizationType.Q4_0:
        return _q4_0(tensor)
    if kind == GGMLQuantizationType.Q8_0:
        return _q8_0(tensor)
    if kind == GGMLQuantizationType.F32:
        return tensor.dequantize()
    return np.ascontiguousarray(tensor.codes, dtype=np.float16)


def _q4_0(tensor: QTensor) -> U8:
    """fp16 scale, then 16 bytes: low nibbles are the block's first 16 values, high nibbles the last 16, each plus 8."""
    rows, columns = tensor.codes.shape
    codes = (tensor.codes.astype(np.int8) + 8).astype(np.uint8).reshape(rows, columns // BLOCK, 2, BLOCK // 2)
    out = np.empty((rows, columns // BLOCK, 2 + BLOCK // 2), np.uint8)
    out[:, :, :2] = _scale_bytes(tensor)
    out[:, :, 2:] = codes[:, :, 0] | (codes[:, :, 1] << 4)
    return out.reshape(rows, -1)


def _q8_0(tensor: QTensor) -> U8:
    """fp16 scale, then 32 signed bytes."""
    rows, columns = tensor.codes.shape
    out = np.empty((rows, columns // BLOCK, 2 + BLOCK), np.uint8)
    out[:, :, :2] = _scale_bytes(tensor)
    out[:, :, 2:] = tensor.codes.astype(np.int8).view(np.uint8).reshape(rows, columns // BLOCK, BLOCK)
    return out.reshape(rows, -1)


def _scale_bytes(tensor: QTensor) -> U8:
    scale = np.ascontiguousarray(tensor.scale_per_block(), dtype="<f2")
    return scale.view(np.uint8).reshape(*scale.shape, 2)
