"""Read and write safetensors files with numpy alone: every tensor as float32, one at a time, through plain reads.

Format: 8 bytes little-endian header length, a JSON header of that length, then the tensors' bytes
(https://github.com/huggingface/safetensors#format). The `safetensors` package is not used because it maps the
file (mapped pages count towards resident memory, which an export bounds) and cannot give bfloat16 to numpy.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits
from edgevlm.io.json import parse_json
from edgevlm.io.regular import open_regular
from edgevlm.types import F32

_CHUNK_BYTES = 8 << 20
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
         "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}  # fmt: skip
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `offset` counts from the start of the file."""

    dtype: str  # as the file spells it: "F32", "BF16", ...
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsHeader:
    """What the header of a .safetensors file says, of one whose values are somewhere else."""

    def __init__(self, path: Path, entries: dict[str, Any]) -> None:
        """entries: by tensor name, "dtype", "shape" and "data_offsets". Raises EdgeVLMError for broken ones."""
        self.path = path
        self.tensors = _tensor_infos(path, entries, 0)

    def dtype(self, name: str) -> str:
        """The stored type as numpy names it: "float32", "float16", "bfloat16", or the file's word for others."""
        return _FLOATS.get(self.tensors[name].dtype, self.tensors[name].dtype)

    def read(self, name: str) -> F32:
        raise EdgeVLMError(f"Of {self.path} the header alone was fetched, and '{name}' is asked for: download it.")

    def read_bytes(self, name: str, start: int, count: int) -> bytes:
        """None: tensors of one shape and type count as the same where their values are not here."""
        return b""


class SafetensorsFile(SafetensorsHeader):
    """One .safetensors file, its header checked in full when opened.

    Raises EdgeVLMError when the file is missing, truncated, or breaks the format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_regular(path) as stream:
                self.tensors = _read_header(path, stream, os.fstat(stream.fileno()).st_size)
        except OSError as error:
            raise EdgeVLMError(
                f"{path} cannot be read ({error.strerror}): check the path and its permissions."
            ) from None

    def read(self, name: str) -> F32:
        """The tensor `name` as a new C-contiguous float32 array; exact for float16 and bfloat16."""
        info = self.tensors[name]
        if info.dtype not in _FLOATS:
            raise EdgeVLMError(
                f"{self.path} stores the tensor '{name}' as {info.dtype}: F32, F16 or BF16 was expected; "
                "save the model unquantized (model.to(torch.bfloat16).save_pretrained(...))."
            )
        out: F32 = np.empty(math.prod(info.shape), np.float32)
        item = 4 if info.dtype == "F32" else 2
        step = _CHUNK_BYTES // item
        buffer = np.empty(0 if item == 4 else min(step, out.size), "<u2")
        try:
            with open_regular(self.path, buffering=0) as stream:
                stream.seek(info.offset)
                for start in range(0, out.size, step):
                    part = out[start : start + step]
                    raw = part if item == 4 else buffer[: part.size]
                    self._fill(stream, raw)
                    if info.dtype == "F16":
                        part[:] = raw.view(np.float16)
                    elif info.dtype == "BF16":  # bfloat16 is the upper half of a float32
                        np.left_shift(raw, 16, out=part.view(np.uint32), dtype=np.uint32)
        except OSError as error:
            raise EdgeVLMError(f"{self.path} cannot be read ({error.strerror}): check the disk.") from None
        return out.reshape(info.shape)

    def read_bytes(self, name: str, start: int, count: int) -> bytes:
        """At most `count` stored bytes of the tensor `name` from its byte `start`."""
        info = self.tensors[name]
        with open_regular(self.path) as stream:
            stream.seek(info.offset + start)
            return stream.read(max(0, min(count, info.nbytes - start)))

    def _fill(self, stream: Any, array: npt.NDArray[Any]) -> None:
        view = array.view(np.uint8).data
        done = 0
        while done < len(view):
            count = stream.readinto(view[done:])
            if not count:
                raise EdgeVLMError(f"{self.path} became shorter while it was read: do not change it during an export.")
            done += count


def write_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], F32], dtype: str
) -> None:
    """Write tensors of these names and shapes, each read when its turn comes. dtype: "float32" or "float16"."""
    word, stored = {name: word for word, name in _FLOATS.items()}[dtype], np.dtype(dtype).newbyteorder("<")
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * stored.itemsize
        header[name] = {"dtype": word, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            stream.write(np.ascontiguousarray(read(name), stored).tobytes())


def _read_header(path: Path, stream: BinaryIO, size: int) -> dict[str, TensorInfo]:
    prefix = stream.read(8)
    if len(prefix) < 8:
        raise _truncated(path, 8, size)
    length = int.from_bytes(prefix, "little")
    if prefix.startswith(b"version "):
        raise EdgeVLMError(
            f"{path} is a Git LFS pointer, not the weights: run 'git lfs pull', or download the file itself."
        )
    if length > limits.SAFETENSORS_HEADER:
        raise EdgeVLMError(
            f"{path} is not a safetensors file: its header claims {length} bytes and at most "
            f"{limits.SAFETENSORS_HEADER} are read; download it again."
        )
    if 8 + length > size:
        raise _truncated(path, 8 + length, size)
    try:
        header = parse_json(stream.read(length), limits.SAFETENSORS_HEADER)
    except ValueError as error:
        raise _broken(path, f"its header is not valid JSON ({error})") from None
    if not isinstance(header, dict):
        raise _broken(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    tensors = _tensor_infos(path, header, 8 + length)
    _check_layout(path, tensors, 8 + length, size)
    return tensors


def _tensor_infos(path: Path, header: dict[str, Any], data_start: int) -> dict[str, TensorInfo]:
    if len(header) > limits.TENSORS:
        raise _broken(path, f"it holds {len(header)} tensors, at most {limits.TENSORS} are read")
    return {name: _tensor_info(path, name, entry, data_start) for name, entry in header.items()}


def _tensor_info(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _broken(path, f"the tensor '{name}' lacks dtype, shape or data_offsets")
    if len(name) > limits.TENSOR_NAME:
        raise _broken(path, f"the name of a tensor has {len(name)} characters")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or len(dtype) > 20:
        raise _broken(path, f"the tensor '{name}' has the dtype {str(dtype)[:80]!r}")
    if not _is_counts(shape) or len(shape) > limits.DIMENSIONS or math.prod(shape) > limits.TENSOR_VALUES:
        raise _broken(path, f"the tensor '{name}' has the shape {str(shape)[:100]}")
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _broken(path, f"the tensor '{name}' has the offsets {str(offsets)[:100]}")
    nbytes = offsets[1] - offsets[0]
    bits = math.prod(shape) * _BITS.get(dtype, 0)
    if dtype in _BITS and bits != nbytes * 8:
        raise _broken(path, f"the tensor '{name}' of {dtype} {shape} needs {bits // 8} bytes and has {nbytes}")
    return TensorInfo(dtype, tuple(shape), data_start + offsets[0], nbytes)


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_layout(path: Path, tensors: dict[str, TensorInfo], data_start: int, size: int) -> None:
    """The tensors must tile the data exactly, as the format demands: no overlap, no hole, nothing behind."""
    end = data_start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != end:
            problem = (
                "overlaps the one before it" if info.offset < end else "does not start where the one before it ends"
            )
            raise _broken(path, f"the tensor '{name}' {problem}")
        end += info.nbytes
    if end > size:
        raise _truncated(path, end, size)
    if end < size:
        raise _broken(path, f"its header describes {end} bytes and the file has {size}")


def _truncated(path: Path, expected: int, found: int) -> EdgeVLMError:
    return EdgeVLMError(
        f"{path} is truncated: {expected} bytes were expected and {found} were found; download it again."
    )


def _broken(path: Path, problem: str) -> EdgeVLMError:
    return EdgeVLMError(f"{path} is not a valid safetensors file: {problem[:300]}; download it again.")
