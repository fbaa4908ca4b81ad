"""Read the GGUF files that we write: header, tensors, and which canonical weight is which tensor.

Written for files from strangers: every length is checked against the file before it is used, and nothing is executed.
(llama.cpp's own gguf-py takes seconds for the vocabulary of SmolVLM; this skips over what nobody asks for.)
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.errors import EdgeVLMError
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import Decoder
from edgevlm.types import I64

F32 = npt.NDArray[np.float32]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# ggml type: (name, values per block, bytes per block)
_TYPES = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 8: ("Q8_0", 32, 34)}
_MAX_DIMENSIONS = 4


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
            with path.open("rb") as stream:
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
        self.keys: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string()
            self.keys[key] = self._value(*self._take("<I"))
        found: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
        for _ in range(count):
            name = self._string()
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
            if shape[-1] % block:
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
        return values

    def _string(self) -> str:
        (length,) = self._take("<Q")
        start, self._at = self._at, self._at + length
        if self._at > len(self._data):
            raise ValueError("a text runs beyond the end")
        return self._data[start : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._take("<" + _SCALARS[kind])[0]
        item, count = self._take("<IQ")
        if count > len(self._data):
            raise ValueError(f"a list of {count} items")
        if item == _STRING:
            return [self._string() for _ in range(count)]
        return list(self._take(f"<{count}{_SCALARS[item]}"))

    def read(self, name: str) -> F32:
        """A whole tensor, dequantized."""
        return self.rows(name, slice(None))

    def rows(self, name: str, which: slice | I64) -> F32:
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


_DECODER = {
    "norm1": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "norm2": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_VISION = {
    "norm1": "ln1",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_out",
    "norm2": "ln2",
    "fc1": "ffn_up",
    "fc2": "ffn_down",
}
_ALONE = {
    "decoder.embed": "token_embd",
    "decoder.norm": "output_norm",
    "decoder.head": "output",
    "vision.patch_embedding": "v.patch_embd",
    "vision.post_norm": "v.post_ln",
    "projector.linear": "mm.model.fc",
}
ROPE_FACTORS = "decoder.rope_factors"  # computed from the spec, no weight of the model
_TABLES = {"vision.position_embedding": "v.position_embd.weight", ROPE_FACTORS: "rope_freqs.weight"}


def gguf_name(weight: str) -> str:
    """The tensor that holds a canonical weight, in llama.cpp's `llama` and `idefics3` naming."""
    if weight in _TABLES:
        return _TABLES[weight]
    stem, _, what = weight.rpartition(".")
    if stem in _ALONE:
        return f"{_ALONE[stem]}.{what}"
    component, _, layer, part = stem.split(".")
    return f"blk.{layer}.{_DECODER[part]}.{what}" if component == "decoder" else f"v.blk.{layer}.{_VISION[part]}.{what}"


def rope_order(weight: str, spec: Decoder) -> npt.NDArray[np.intp] | None:
    """Row i of the file is row `order[i]` of the weight; None where rows keep their order.

    llama.cpp rotates neighbouring pairs of rows where the checkpoint rotates split halves, so the q and k rows of
    each head are interleaved (`LlamaModel.permute` of llama.cpp's converter).
    """
    part = weight.split(".")
    heads = {"q": spec.num_heads, "k": spec.num_kv_heads}.get(part[3]) if len(part) == 5 else None
    if part[0] != "decoder" or not heads:
        return None
    return np.arange(heads * spec.head_dim).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


class GgufWeights:
    """`Weights` over a pair of files: canonical names, rows in the checkpoint's order, float32."""

    def __init__(self, model: Path, mmproj: Path, spec: ModelSpec) -> None:
        self._files = (GgufFile(model), GgufFile(mmproj))
        self._spec = spec

    def _file(self, name: str) -> GgufFile:
        return self._files[0 if name.startswith("decoder.") else 1]

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and gguf_name(name) in self._file(name).tensors
        except (KeyError, ValueError):
            return False

    def read(self, name: str) -> F32:
        """One tensor as a new float32 array."""
        values = self._file(name).read(gguf_name(name))
        order = rope_order(name, self._spec.decoder)
        if order is None:
            return values
        original = np.empty_like(values)
        original[order] = values
        return original
