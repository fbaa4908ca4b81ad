"""MIL blob storage, version 2: the weight file of a CoreML package.

Source: https://github.com/apple/coremltools/tree/9.0/mlmodel/src/MILBlob/Blob/StorageFormat.hpp
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits
from edgevlm.io.regular import open_regular
from edgevlm.types import U8

Array = npt.NDArray[Any]
Dim = int | None  # None: flexible

NUMPY = {"bool": "?", "fp16": "<f2", "fp32": "<f4", "fp64": "<f8", "int8": "i1", "int16": "<i2",
          "int32": "<i4", "int64": "<i8", "uint8": "u1", "uint16": "<u2", "uint32": "<u4",
          "uint64": "<u8"}  # fmt: skip
_BLOB_TYPES = {1: "fp16", 2: "fp32", 3: "uint8", 4: "int8", 6: "int16", 7: "uint16", 8: "int4", 9: "uint1",
               10: "uint2", 11: "uint4", 12: "uint3", 13: "uint6", 14: "int32", 15: "uint32"}  # fmt: skip
_SUB_BYTE = {"int4": 4, "uint6": 6, "uint4": 4, "uint3": 3, "uint2": 2, "uint1": 1}
_BLOB_SENTINEL = 0xDEADBEEF


@dataclass(frozen=True)
class TensorType:
    dtype: str  # "fp16", "int4", "string", ...
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class Blob:
    """A tensor in the weight file; `offset` points at its 64-byte record."""

    offset: int
    type: TensorType


def broken(folder: Path, problem: str) -> EdgeVLMError:
    return EdgeVLMError(f"{folder} is not a valid CoreML package: {problem}; export the bundle again.")


def blob_span(weight_file: Path, blob: Blob) -> tuple[str, int, int]:
    """(type, first byte, bytes) of a tensor in the weight file, checked against the file's size."""
    try:
        with open_regular(weight_file) as stream:
            size = os.fstat(stream.fileno()).st_size
            stream.seek(blob.offset)
            record = stream.read(32)
    except (OSError, ValueError, OverflowError) as error:
        raise EdgeVLMError(f"{weight_file} cannot be read ({error}): export the bundle again.") from None
    if len(record) < 32:
        raise broken(weight_file.parents[3], "its weight file is truncated")
    sentinel, kind, count, start = struct.unpack("<IIQQ", record[:24])
    dtype = _BLOB_TYPES.get(kind, f"type {kind}")
    if sentinel != _BLOB_SENTINEL or dtype != blob.type.dtype:
        raise broken(weight_file.parents[3], f"its weight file has no {blob.type.dtype} tensor at {blob.offset}")
    elements = math.prod(size_ or 0 for size_ in blob.type.shape)
    bits = _SUB_BYTE.get(dtype) or 8 * np.dtype(NUMPY[dtype]).itemsize
    if elements > limits.TENSOR_VALUES or (elements * bits + 7) // 8 != count or start + count > size:
        raise broken(weight_file.parents[3], f"the tensor at {blob.offset} does not fit its weight file")
    return dtype, start, count


def read_blob(weight_file: Path, blob: Blob) -> Array:
    dtype, start, count = blob_span(weight_file, blob)
    shape = tuple(size or 0 for size in blob.type.shape)
    with open_regular(weight_file) as stream:
        stream.seek(start)
        raw = np.fromfile(stream, np.uint8, count)
    if dtype not in _SUB_BYTE:
        return raw.view(NUMPY[dtype]).reshape(shape)
    return unpack(raw, dtype, math.prod(shape)).reshape(shape)


def unpack(raw: U8, dtype: str, count: int) -> Array:
    """Sub-byte codes, lowest bits first, to int8 ("int4": two's complement) or uint8."""
    bits = _SUB_BYTE[dtype]
    if 8 % bits:  # codes that lie across bytes
        flags = np.unpackbits(raw, bitorder="little")[: count * bits].reshape(count, bits)
        return np.packbits(flags, axis=1, bitorder="little")[:, 0]
    if bits == 4:  # a byte of two codes becomes two bytes
        pairs = raw.astype("<u2")
        pairs |= pairs << 4
        pairs &= 0x0F0F
        flat = pairs.view(np.uint8)[:count]
        return (flat ^ 8).view(np.int8) - np.int8(8) if dtype == "int4" else flat
    codes = np.empty((raw.size, 8 // bits), np.uint8)
    for i in range(8 // bits):
        codes[:, i] = (raw >> (i * bits)) & ((1 << bits) - 1)
    return codes.reshape(-1)[:count]
