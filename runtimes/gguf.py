"""Read the GGUF files that we write: header, tensors, and the weights in them by canonical name.

Written for files from strangers: every length is checked against the file before it is used, and nothing is executed.
(llama.cpp's own gguf-py takes seconds for a vocabulary of 50,000; this skips values that are not needed.)
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevlm.bundle.manifest import target_of
from edgevlm.bundle.targets import GgufTarget
from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits
from edgevlm.io.regular import open_regular
from edgevlm.models.model import ModelSpec
from edgevlm.runtimes.llama.names import PROJECTORS, TEXT
from edgevlm.runtimes.llama.table import Table, frame_name
from edgevlm.types import F32

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# ggml type: (name, values per block, bytes per block)
_TYPES = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 8: ("Q8_0", 32, 34)}
_LENGTH = struct.Struct("<Q")  # of a string
_MAX_DIMENSIONS = 4  # of ggml


@dataclass(frozen=True)
class Tensor:
    kind: str  # "F32", "F16", "Q4_0" or "Q8_0"
    shape: tuple[int, ...]  # slowest dimension first, as numpy has it
    start: int  # first byte in the file
    nbytes: int


class GgufFile:
    """One file, mapped. `keys` holds every key and value, `tensors` every tensor by name.

    Raises EdgeVLMError for a file that is none, is cut off, or holds a tensor type that edgevlm does not write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_regular(path) as stream:
                self._data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._at = 0
            self._read_header()
        except OSError as error:
            raise EdgeVLMError(
                f"'{path}' cannot be read ({error.strerror}): check the path and its permissions."
            ) from None
        except (ValueError, KeyError, struct.error, OverflowError, MemoryError) as error:
            raise EdgeVLMError(
                f"'{path}' is no GGUF file of edgevlm, or is damaged ({str(error)[:120]}): export or copy it again."
            ) from None

    def _read_header(self) -> None:
        magic, version, count, pairs = self._take("<4sIQQ")
        if magic != b"GGUF" or version != 3:
            raise ValueError(f"it starts with {magic!r}, version {version}")
        if pairs > limits.GGUF_KEYS or count > limits.TENSORS:
            raise ValueError(f"it has {pairs} keys and {count} tensors")
        self.keys: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string()
            if key in self.keys:
                raise ValueError(f"the key {key[:80]} occurs twice")
            self.keys[key] = self._value(*self._take("<I"))
        found: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
        for _ in range(count):
            name = self._string()
            if name in found or len(name) > limits.TENSOR_NAME:
                raise ValueError(f"the tensor {name[:80]} occurs twice or has too long a name")
            (dimensions,) = self._take("<I")
            if not 1 <= dimensions <= _MAX_DIMENSIONS:
                raise ValueError(f"{name} has {dimensions} dimensions")
            shape = self._take(f"<{dimensions}Q")[::-1]
            kind, offset = self._take("<IQ")
            if kind not in _TYPES:
                raise ValueError(f"{name} has the unknown type {kind}")
            label, block, size = _TYPES[kind]
            values = 1
            for n in shape:  # Python integers: no product of hostile sizes wraps around
                values *= n
            if not values or shape[-1] % block:
                raise ValueError(f"{name} has rows of {shape[-1]} values as {label}")
            found[name] = (label, shape, offset, values // block * size)
        align = self.keys.get("general.alignment", 32)
        if align != 32:
            raise ValueError(f"its alignment is {align}")
        base = -(-self._at // align) * align
        self.tensors: dict[str, Tensor] = {}
        for name, (label, shape, offset, nbytes) in found.items():
            if base + offset + nbytes > len(self._data):
                raise ValueError(f"{name} lies beyond the end")
            self.tensors[name] = Tensor(label, shape, base + offset, nbytes)

    def _take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        if self._at > min(len(self._data), limits.GGUF_HEADER):
            raise ValueError("its header has no end")
        return values

    def _string(self) -> str:
        return self._strings(1)[0]

    def _strings(self, count: int) -> list[str]:
        """One after the other. Lists are as long as a vocabulary: a call for each would take most of a start's time."""
        data, at, end = self._data, self._at, min(len(self._data), limits.GGUF_HEADER)
        found = []
        for _ in range(count):
            (length,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size + length
            if at > end:
                raise ValueError("its header has no end")
            found.append(data[at - length : at].decode("utf-8"))
        self._at = at
        return found

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._take("<" + _SCALARS[kind])[0]
        item, count = self._take("<IQ")
        if count > limits.GGUF_LIST:
            raise ValueError(f"a list of {count} items")
        if item == _STRING:
            return self._strings(count)
        return list(self._take(f"<{count}{_SCALARS[item]}"))

    def read(self, name: str) -> F32:
        """A whole tensor, dequantized."""
        return self.rows(name, slice(None))

    def rows(self, name: str, which: slice | npt.NDArray[np.int64]) -> F32:
        """Rows along the first dimension, dequantized: each value exactly float32(scale) * code."""
        tensor = self.tensors[name]
        raw = np.frombuffer(self._data, np.uint8, tensor.nbytes, tensor.start)
        if tensor.kind in ("F32", "F16"):
            values = raw.view("<f4" if tensor.kind == "F32" else "<f2").reshape(tensor.shape)
            return np.array(values[which], np.float32)
        size = {label: bytes_ for label, _, bytes_ in _TYPES.values()}[tensor.kind]
        blocks = raw.reshape(tensor.shape[0], -1, size)[which]
        scale = np.ascontiguousarray(blocks[:, :, :2]).view("<f2").astype(np.float32)
        if tensor.kind == "Q8_0":
            codes = blocks[:, :, 2:].view(np.int8)
        else:
            packed = blocks[:, :, 2:]
            codes = np.concatenate([packed & 15, packed >> 4], axis=2).view(np.int8) - np.int8(8)
        return (codes.astype(np.float32) * scale).reshape(len(blocks), -1)


def gguf_files(bundle: Bundle) -> tuple[Path, Path | None]:
    """model.gguf and mmproj.gguf of a bundle; None where llama.cpp has no form of the vision tower."""
    target = target_of(bundle, GgufTarget)
    return bundle.path(target.model), bundle.path(target.mmproj) if target.mmproj else None


class GgufWeights:
    """`Weights` over a pair of files: canonical names, rows in the checkpoint's order, float32."""

    def __init__(self, model: Path, mmproj: Path | None, spec: ModelSpec) -> None:
        self._spec = spec
        text = GgufFile(model)
        self._text = text, _table(text, "general.architecture", TEXT)
        pictures = GgufFile(mmproj) if mmproj else None
        self._pictures = (pictures, _table(pictures, "clip.projector_type", PROJECTORS)) if pictures else None

    def _find(self, name: str) -> tuple[GgufFile, Table, str]:
        """The file, its table and the tensor's name there; KeyError where there is none."""
        pair = self._text if name.startswith("decoder.") else self._pictures
        if pair is None:
            raise KeyError(name)
        file, table = pair
        found = table.name(name)
        if found not in file.tensors:
            raise KeyError(name)
        return file, table, found

    def should_hold(self, name: str) -> bool:
        """Whether a weight of the model belongs in these files: a tower's does not where there is no mmproj."""
        return name.startswith("decoder.") or self._pictures is not None

    def held(self, name: str, values: F32) -> F32:
        """What a file holds of the original's values: all of them, but for kernels that llama.cpp takes in fp16."""
        return values.astype(np.float16).astype(np.float32) if self._find(name)[1].halves(name) else values

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and bool(self._find(name))
        except KeyError:
            return False

    def read(self, name: str) -> F32:
        """One tensor as a new float32 array."""
        file, table, found = self._find(name)
        values = file.read(found)
        if table.square_patches and name == "vision.patch_embedding.weight":
            later = range(1, getattr(self._spec.vision, "frames", 1))
            kernels = [values, *(file.read(frame_name(found, frame)) for frame in later)]
            values = np.stack(kernels, axis=2).reshape(len(values), -1)
        if table.scatters(name):
            values = values.reshape(len(values), -1)
        if table.spans(name, values.ndim == 4 and values.shape[2:] == (1, 1)):
            values = values.reshape(values.shape[:-2])
        values = values.T if table.turns(name) else values
        values = values.reshape(-1, values.shape[-1]) if table.planes_of(name) else values
        by_head = table.by_head(name, self._spec)
        if by_head is not None:
            values = _undone(values, by_head)
        part, parts = table.part(name)
        if parts > 1:
            values = np.ascontiguousarray(np.split(values, parts)[part])
        order, columns = table.order(name, self._spec), table.columns(name, self._spec)
        values = values if columns is None else _undone(values.T, columns).T
        return np.ascontiguousarray(values if order is None else _undone(values, order))


def _undone(values: F32, order: npt.NDArray[np.intp]) -> F32:
    """Rows where they stood before they were taken in that order."""
    original = np.empty_like(values)
    original[order] = values
    return original


def _table(file: GgufFile, key: str, tables: dict[str, Table]) -> Table:
    kind = file.keys.get(key)
    if not isinstance(kind, str) or kind not in tables:
        raise EdgeVLMError(f"'{file.path}' has the {key} {kind!r}, which edgevlm does not write: export it again.")
    return tables[kind]
