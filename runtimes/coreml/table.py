"""embedding.bin: the token embeddings of a bundle's CoreML target, mapped into memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.bundle.targets import EmbeddingFile
from edgevlm.errors import EdgeVLMError
from edgevlm.io.regular import check_regular
from edgevlm.runtimes.mil.blob import unpack
from edgevlm.types import F32, I64

ALIGN = 64  # bytes, of the scales


class EmbeddingTable:
    """embedding.bin, mapped: only the rows that a prompt uses are read."""

    def __init__(self, path: Path, info: EmbeddingFile) -> None:
        self._info = info
        width = info.shape[1] // 2 if info.kind == "int4" else info.shape[1]
        dtype = {"fp16": "<f2", "int8": "i1", "int4": "u1"}.get(info.kind)
        if dtype is None:
            raise EdgeVLMError(f"'{path.name}' has the unknown kind '{info.kind}': export the bundle again.")
        # As they are written: codes first, scales at the next multiple of ALIGN, and nothing else.
        spans = [info.codes] if info.scale is None else [info.codes, info.scale]
        starts = [0, -(-info.codes[1] // ALIGN) * ALIGN]
        size = check_regular(path).st_size
        if [start for start, _ in spans] != starts[: len(spans)] or sum(spans[-1]) != size:
            raise _other(path)
        if not (info.scale is None) == (info.scale_shape is None) == (info.kind == "fp16"):
            raise _other(path)
        self._codes = _map(path, dtype, info.codes, (info.shape[0], width))
        self._scale: npt.NDArray[Any] | None = None
        if info.scale is not None and info.scale_shape is not None:
            self._scale = _map(path, "<f2", info.scale, info.scale_shape)
            if info.scale_shape[0] != info.shape[0] or info.shape[1] % max(1, info.scale_shape[1]):
                raise _other(path)

    def rows(self, ids: I64) -> F32:
        """Embeddings (S, D) float32 of the ids (S,)."""
        rows, width = self._info.shape
        if len(ids) and not (int(np.min(ids)) >= 0 and int(np.max(ids)) < rows):
            raise EdgeVLMError(f"A token id is outside the vocabulary of {rows}: use the bundle's own tokenizer.")
        codes = np.asarray(self._codes[ids])
        if self._info.kind == "int4":
            codes = unpack(codes.reshape(-1), "int4", len(ids) * width).reshape(len(ids), width)
        values = codes.astype(np.float32)
        if self._scale is not None:
            scale = self._scale[ids].astype(np.float32)
            values = (values.reshape(len(ids), scale.shape[1], -1) * scale[:, :, None]).reshape(len(ids), width)
        return values


def _map(path: Path, dtype: str, span: tuple[int, int], shape: tuple[int, int]) -> npt.NDArray[Any]:
    start, count = span
    if min(shape) < 1 or math.prod(shape) * np.dtype(dtype).itemsize != count:
        raise _other(path)
    return np.memmap(path, dtype, mode="r", offset=start, shape=shape)


def _other(path: Path) -> EdgeVLMError:
    return EdgeVLMError(f"'{path.name}' does not hold the table that the manifest describes: export the bundle again.")
