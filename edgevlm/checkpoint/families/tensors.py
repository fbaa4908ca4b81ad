"""Where each weight of the tree stands in a checkpoint's files, and what is done to it on the way.

A family lists patterns; the tree itself, with every shape, follows from the model's description (`weight_tree`), so
that missing, extra and misshapen tensors are found without a second list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.errors import EdgeVLMError
from edgevlm.models.record import WeightInfo
from edgevlm.types import F32

Shape = tuple[int, ...]
Read = Callable[[str], F32]
# Buffers that old versions of transformers saved; all are computed.
_COMPUTED = (".position_ids", ".inv_freq", ".num_batches_tracked")


class Source(Protocol):
    """One or several stored tensors that give one of the tree. `part` is "weight", "bias" or "" for a bare tensor."""

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        """The names and shapes that must be in the files for a tensor of the tree with `shape`."""

    def make(self, read: Read, part: str, shape: Shape) -> F32: ...


@dataclass(frozen=True)
class Plain:
    """The stored tensor as it is, or as another shape of as many values."""

    stem: str
    shape: Shape | None = None  # as it is stored, where that differs; a bias is as it should be

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        return {_name(self.stem, part): shape if self.shape is None or part == "bias" else self.shape}

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        return read(_name(self.stem, part)).reshape(shape)


@dataclass(frozen=True)
class Split:
    """Rows of a tensor that stacks several maps, from row `start` on, of `total` rows."""

    stem: str
    start: int
    total: int

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        return {_name(self.stem, part): (self.total, *shape[1:])}

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        return np.ascontiguousarray(read(_name(self.stem, part))[self.start : self.start + shape[0]])


@dataclass(frozen=True)
class Scaled:
    """A map whose every output is multiplied by a stored vector: layer scale, folded into the map before it."""

    source: Source
    scale: str
    ones: int = 0  # axes of length 1 behind the vector's own

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        return self.source.stored(part, shape) | {self.scale: (*shape[:1], *(1,) * self.ones)}

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        values = self.source.make(read, part, shape)
        scaled: F32 = values * read(self.scale).reshape(-1, *(1,) * (values.ndim - 1))
        return scaled


@dataclass(frozen=True)
class Swapped:
    """A map whose inputs stand in another order: stored as (.., n, `last`), read as (.., last, n)."""

    stem: str
    last: int
    kernel: tuple[int, ...] = ()  # of a convolution: how its axes split `last`

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        split = (shape[0], shape[-1] // self.last, *self.kernel) if self.kernel and part == "weight" else shape
        return {_name(self.stem, part): split}

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        found = read(_name(self.stem, part))
        return found if part == "bias" else found.reshape(shape[0], -1, self.last).swapaxes(1, 2).reshape(shape)


@dataclass(frozen=True)
class Pointwise:
    """A map that is stored as a convolution of 1 x 1."""

    stem: str

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        return {_name(self.stem, part): (*shape, 1, 1) if part == "weight" else shape}

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        return read(_name(self.stem, part)).reshape(shape)


@dataclass(frozen=True)
class BatchNormed:
    """A kernel without bias and the batch norm behind it (arXiv 1502.03167), as one kernel with a bias."""

    kernel: str
    norm: str
    eps: float = 1e-5

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        width = shape[:1]
        norm = {f"{self.norm}.{name}": width for name in ("weight", "bias", "running_mean", "running_var")}
        return norm | ({f"{self.kernel}.weight": shape} if part == "weight" else {})

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        gain = read(f"{self.norm}.weight") / np.sqrt(read(f"{self.norm}.running_var") + np.float32(self.eps))
        if part == "bias":
            return np.asarray(read(f"{self.norm}.bias") - read(f"{self.norm}.running_mean") * gain, np.float32)
        kernel = read(f"{self.kernel}.weight")
        return np.asarray(kernel * gain.reshape(-1, *(1,) * (kernel.ndim - 1)), np.float32)


@dataclass(frozen=True)
class Times:
    """A tensor multiplied by one number."""

    source: Source
    factor: float

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        return self.source.stored(part, shape)

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        return self.source.make(read, part, shape) * np.float32(self.factor)


@dataclass(frozen=True)
class PlusOne:
    """A norm that is stored as its difference from one (Gemma)."""

    stem: str

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        return {_name(self.stem, part): shape}

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        return read(_name(self.stem, part)) + np.float32(1 if part == "weight" else 0)


@dataclass(frozen=True)
class Transposed:
    """A linear map's matrix, without bias, out of a bare tensor (inputs, outputs)."""

    source: Source

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        return self.source.stored("", shape[::-1])

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        return np.ascontiguousarray(self.source.make(read, "", shape[::-1]).T)


@dataclass(frozen=True)
class Rows:
    """Chosen rows of a stored table."""

    stem: str
    rows: Callable[[], npt.NDArray[np.int64]]

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        return {_name(self.stem, part): shape}

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        return read(_name(self.stem, part))[self.rows()]


@dataclass(frozen=True)
class Computed:
    """A tensor that no file has."""

    values: Callable[[], F32]

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        return {}

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        return self.values().reshape(shape)


def _name(stem: str, part: str) -> str:
    return f"{stem}.{part}" if part else stem


Names = Mapping[str, "str | Source | Callable[[int], Source]"]
"""Patterns of the tree -> stored stems. Keys leave out ".weight" and ".bias"; "{i}" is the layer in keys and stems; a
function is called with the layer."""


def times(entry: str | Source | Callable[[int], Source], factor: float) -> Callable[[int], Source]:
    """An entry of `Names` whose tensors are multiplied by `factor`."""
    return lambda layer: Times(_of_layer(entry, layer), factor)


class MappedWeights:
    """A checkpoint's tensors under edgevlm's canonical names."""

    def __init__(self, checkpoint: Checkpoint, tree: dict[str, WeightInfo], sources: dict[str, Source]) -> None:
        self._checkpoint, self.tree, self._sources = checkpoint, tree, sources

    def names(self) -> list[str]:
        """Of the graphs' weights."""
        return [name for name, info in self.tree.items() if info.role != "host"]

    def __contains__(self, name: object) -> bool:
        return name in self.tree

    def shape(self, name: str) -> Shape:
        return self.tree[name].shape

    def is_linear(self, name: str) -> bool:
        """Whether it is a matrix of a linear map or the embedding table, which are quantized."""
        return self.tree[name].is_linear

    def stored_names(self, name: str) -> list[str]:
        """The tensors of the checkpoint that it is made of."""
        return list(self._sources[name].stored(_part(name), self.shape(name)))

    def dtype(self, name: str) -> str:
        """How the checkpoint stores the tensor: "float32", "float16" or "bfloat16"."""
        stored = self.stored_names(name)
        return self._checkpoint.dtype(stored[0]) if stored else "float32"

    def read(self, name: str) -> F32:
        """One tensor as a new C-contiguous float32 array."""
        made = self._sources[name].make(self._checkpoint.read, _part(name), self.shape(name))
        return np.ascontiguousarray(made, np.float32)


def map_tree(
    checkpoint: Checkpoint, tree: dict[str, WeightInfo], names: Names, unused: Callable[[str], bool]
) -> MappedWeights:
    """The weights of `tree` by canonical name.

    EdgeVLMError unless the files hold each in its shape, and beside them only buffers and `unused` tensors.
    """
    sources = {name: _source(name, names) for name in tree}
    have, known = set(checkpoint.names()), set()
    for name, source in sources.items():
        for stored, shape in source.stored(_part(name), tree[name].shape).items():
            _check(checkpoint, stored, shape, have)
            known.add(stored)
    extra = sorted(n for n in have - known if not n.endswith(_COMPUTED) and not unused(n))
    if extra:
        raise EdgeVLMError(
            f"{checkpoint.folder} holds the tensor '{extra[0][:200]}', which no {checkpoint.config.get('model_type')} "
            f"model has ({len(extra)} such): it is of another architecture, or quantized; use the original "
            "checkpoint."
        )
    return MappedWeights(checkpoint, tree, sources)


def _check(checkpoint: Checkpoint, name: str, shape: Shape, have: set[str]) -> None:
    if name not in have:
        raise EdgeVLMError(
            f"{checkpoint.folder} lacks the tensor '{name}' that its config.json asks for: download it again."
        )
    if (found := checkpoint.shape(name)) != shape:
        raise EdgeVLMError(
            f"{checkpoint.folder} holds '{name}' with the shape {list(found)} where its config.json asks for "
            f"{list(shape)}: config and weights belong to different models; download both again."
        )


def prefix_of(checkpoint: Checkpoint, mark: str) -> str:
    """What stands before `mark` in the one tensor name that ends with it: a part's prefix, whatever the layout."""
    found = [name.removesuffix(mark) for name in checkpoint.names() if name.endswith(mark)]
    if len(found) != 1:
        raise EdgeVLMError(
            f"{checkpoint.folder} has {len(found)} tensors that end in '{mark}', where its config.json asks for one: "
            "download it again."
        )
    return found[0]


def either(checkpoint: Checkpoint, *parts: str) -> str:
    """The one of these parts that a tensor's name has, where layouts differ in it; the first where none has any."""
    return next((part for part in parts if any(f"{part}." in name for name in checkpoint.names())), parts[0])


def _source(name: str, names: Names) -> Source:
    stem = name.removesuffix(".weight").removesuffix(".bias")
    layer = next((int(part) for part in stem.split(".") if part.isdigit()), None)
    pattern = stem if layer is None else stem.replace(f".{layer}.", ".{i}.", 1)
    return _of_layer(names[pattern], layer or 0)


def _of_layer(entry: str | Source | Callable[[int], Source], layer: int) -> Source:
    if isinstance(entry, str):
        return Plain(entry.replace("{i}", str(layer)))
    return entry(layer) if callable(entry) else entry


def _part(name: str) -> str:
    last = name.rpartition(".")[2]
    return last if last in ("weight", "bias") else ""
