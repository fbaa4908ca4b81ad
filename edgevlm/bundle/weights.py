"""Reads a bundle's weights back from its own files, through weights.json: what the gate's reference computes with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.bundle.manifest import Bundle
from edgevlm.bundle.qtensor import BLOCK, KINDS, PREFILL, QTensor
from edgevlm.errors import BundleError
from edgevlm.io import limits
from edgevlm.models.record import weight_tree
from edgevlm.types import F32, I64

_STORED: dict[str, np.dtype[Any]] = {
    "fp32": np.dtype("<f4"),
    "fp16": np.dtype("<f2"),
    "int8": np.dtype("i1"),
    "int4": np.dtype("u1"),
}


class ShippedWeights:
    """`Weights` over the files that a runtime loads. Each call reads from disk; nothing is kept.

    prompt: give the decoder's weights in the form of the prompt's own graph, where the bundle has one.
    """

    def __init__(self, bundle: Bundle, *, prompt: bool = False) -> None:
        self._bundle = bundle
        self._prompt = prompt
        table = bundle.read_json("weights.json", limits.MANIFEST_FILE)
        entries = table.get("tensors") if isinstance(table, dict) else None
        self._entries: dict[str, Any] = entries if isinstance(entries, dict) else {}
        self._tree = weight_tree(bundle.manifest.spec)

    def names(self) -> list[str]:
        return list(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def read(self, name: str) -> F32:
        """The tensor as float32, dequantized."""
        tensor = self.quantized(name)
        return tensor.dequantize()

    def rows(self, name: str, ids: I64) -> F32:
        """Rows `ids` (S,) of a matrix (N, K): (S, K) float32, dequantized; where it lies by rows, no other is read."""
        return self._tensor(name, ids).dequantize()

    def quantized(self, name: str) -> QTensor:
        """Codes and scales as shipped; tensors that are no matrix keep their shape."""
        return self._tensor(name)

    def _tensor(self, name: str, ids: I64 | None = None) -> QTensor:
        entry = self._entries.get(name)
        if self._prompt:
            entry = self._entries.get(PREFILL + name, entry)
        if entry is None:
            raise BundleError(f"The bundle '{self._bundle.folder}' lacks the weight '{name}': export it again.")
        try:
            if name in self._tree and tuple(entry["shape"]) != self._tree[name].shape:
                raise ValueError(f"the model has the shape {list(self._tree[name].shape)}")
            return self._read(entry, ids)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise BundleError(
                f"The entry of '{name[:200]}' in weights.json does not fit its file ({str(error)[:120]}): export the "
                "bundle again."
            ) from None

    def _read(self, entry: dict[str, Any], ids: I64 | None) -> QTensor:
        kind, shape, codes = entry["kind"], tuple(entry["shape"]), entry["codes"]
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}")
        path = self._bundle.path(entry["file"])
        dtype = _STORED[kind]
        if codes["layout"] == "columns":
            stride, start = codes["stride"], codes["start"]
            if not 0 <= start <= stride - shape[0]:
                raise ValueError("its columns lie outside the matrix")
            matrix = _load(path, codes["offset"], (shape[1], stride), dtype)[:, start : start + shape[0]]
            values = np.ascontiguousarray((matrix if ids is None else matrix[:, ids]).T)
        elif kind == "int4":
            packed = _load(path, codes["offset"], (shape[0], shape[1] // 2), dtype, ids)
            pairs = packed.astype("<u2")  # a byte of two codes becomes two bytes
            pairs |= pairs << 4
            pairs &= 0x0F0F
            values = pairs.view(np.int8)
            values -= 8
        elif kind == "int8":
            values = (_load(path, codes["offset"], shape, np.dtype("u1"), ids) ^ np.uint8(0x80)).view(np.int8)
        else:
            values = np.array(_load(path, codes["offset"], shape, dtype, ids))
        if "scale" not in entry:
            return QTensor(kind, values)
        per_row = entry["scale"]["layout"] == "row" or kind == "int8"
        blocks = 1 if entry["scale"]["layout"] == "row" else shape[1] // BLOCK
        scale = _load(path, entry["scale"]["offset"], (shape[0], blocks), np.dtype("<f4"), ids)
        return QTensor(kind, values, (scale[:, :1] if per_row else scale).astype(np.float16))


def _load(
    path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], rows: I64 | None = None
) -> npt.NDArray[Any]:
    """`shape` items at `offset`, or some rows, read rather than mapped, so that they leave memory with the array."""
    if not all(type(size) is int and size >= 0 for size in (offset, *shape)):
        raise ValueError("an offset or size is no whole number of at least 0")
    count = math.prod(shape)
    if offset + count * dtype.itemsize > path.stat().st_size:
        raise ValueError("beyond the end of the file")
    if rows is None:
        return np.fromfile(path, dtype, count, offset=offset).reshape(shape)
    width, (wanted, places) = count // shape[0], np.unique(rows, return_inverse=True)
    if wanted.size and not 0 <= wanted[0] <= wanted[-1] < shape[0]:
        raise ValueError(f"it has {shape[0]} rows, and number {wanted[-1]} is asked for")
    found = np.empty((len(wanted), *shape[1:]), dtype)
    with path.open("rb") as stream:
        for row, number in zip(found, wanted.tolist(), strict=True):
            stream.seek(offset + number * width * dtype.itemsize)
            row[...] = np.fromfile(stream, dtype, width).reshape(row.shape)
    return found[places]
