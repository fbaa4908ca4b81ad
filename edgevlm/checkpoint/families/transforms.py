"""Further ways from stored tensors to a weight (`Source`), which few families need."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevlm.checkpoint.families.tensors import Read, Shape
from edgevlm.types import F32


@dataclass(frozen=True)
class HeadRows:
    """The rows of one of several maps that stand in one tensor head by head: part `number` of `parts` of each head."""

    stem: str
    heads: int
    number: int
    parts: int

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        return {_name(self.stem, part): (self.parts * shape[0], *shape[1:])}

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        rows = read(_name(self.stem, part)).reshape(self.heads, self.parts, -1, *shape[1:])
        return np.ascontiguousarray(rows[:, self.number]).reshape(shape)


@dataclass(frozen=True)
class Bare:
    """A matrix or table that is stored without the ending ".weight"."""

    name: str

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        return {self.name: shape}

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        return read(self.name)


@dataclass(frozen=True)
class Halves:
    """A map to heads, the first `turned` rows of each of which are pairs that RoPE turns: they become two halves."""

    stem: str
    head: int  # rows of one head
    turned: int

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        return {_name(self.stem, part): shape}

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        rows = np.arange(self.head)
        rows[: self.turned] = rows[: self.turned].reshape(-1, 2).T.reshape(-1)
        heads = read(_name(self.stem, part)).reshape(-1, self.head, *shape[1:])
        return np.ascontiguousarray(heads[:, rows]).reshape(shape)


@dataclass(frozen=True)
class Part:
    """Map `number` of three that torch's MultiheadAttention keeps in one tensor."""

    prefix: str  # of the attention
    number: int

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        return {f"{self.prefix}in_proj_{part}": (3 * shape[0], *shape[1:])}

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        rows = slice(self.number * shape[0], (self.number + 1) * shape[0])
        return np.ascontiguousarray(read(f"{self.prefix}in_proj_{part}")[rows])


@dataclass(frozen=True)
class Asked:
    """Learned queries, behind their norm and the map to an attention's queries: all of it is constant."""

    queries: str
    norm: str
    attention: str  # prefix of a torch MultiheadAttention
    eps: float = 1e-6

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        (width,) = shape[1:]
        norm = {f"{self.norm}.{each}": (width,) for each in ("weight", "bias")}
        maps = {f"{self.attention}in_proj_weight": (3 * width, width), f"{self.attention}in_proj_bias": (3 * width,)}
        return {self.queries: shape} | norm | maps

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        x, width = read(self.queries).astype(np.float64), shape[1]
        x = x - x.mean(-1, keepdims=True)
        x = _normed(x, self.eps)
        x = x * read(f"{self.norm}.weight") + read(f"{self.norm}.bias")
        weight, bias = (read(f"{self.attention}in_proj_{each}")[:width] for each in ("weight", "bias"))
        return np.asarray(x @ weight.T + bias, np.float32)


@dataclass(frozen=True)
class Projected:
    """A learned row behind a root mean square norm and, where there is one, the map before that: all of it constant."""

    row: str
    norm: str
    eps: float
    linear: str = ""
    width: int = 0  # values of the row where there is a map

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        weights = {f"{self.linear}.weight": (*shape, self.width), f"{self.linear}.bias": shape} if self.linear else {}
        return {self.row: (self.width,) if self.linear else shape, f"{self.norm}.weight": shape, **weights}

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        x = read(self.row).astype(np.float64)
        x = read(f"{self.linear}.weight") @ x + read(f"{self.linear}.bias") if self.linear else x
        return np.asarray(_normed(x, self.eps) * read(f"{self.norm}.weight"), np.float32)


@dataclass(frozen=True)
class Embedded:
    """Rows of a small table behind a root mean square norm, a map, and such a norm without weights: all constant."""

    table: str
    rows: tuple[int, ...]
    size: tuple[int, int]  # of the table
    norm: str
    linear: str
    eps: float

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        width = self.size[1]
        maps = {f"{self.norm}.weight": (width,), f"{self.linear}.weight": (shape[1], width)}
        return {f"{self.table}.weight": self.size, **maps}

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        x = _normed(read(f"{self.table}.weight")[list(self.rows)].astype(np.float64), self.eps)
        x = x * read(f"{self.norm}.weight") @ read(f"{self.linear}.weight").T.astype(np.float64)
        return np.asarray(_normed(x, self.eps), np.float32)


@dataclass(frozen=True)
class MinusExp:
    """A negative number that is stored as the logarithm of its size."""

    stem: str

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        return {_name(self.stem, part): shape}

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        exact = np.exp(read(_name(self.stem, part)).astype(np.float64))  # float32's last bit differs between CPUs
        values: F32 = -exact.astype(np.float32)
        return values


@dataclass(frozen=True)
class Copied:
    """A table some of whose rows are copies of another one: tokens that a model looks up as if they were that one."""

    stem: str
    rows: tuple[int, ...]
    source: int

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        return {_name(self.stem, part): shape}

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        values = np.array(read(_name(self.stem, part)))
        values[list(self.rows)] = values[self.source]
        return values


@dataclass(frozen=True)
class Extended:
    """A table that has more rows than are stored: copies of its first."""

    stem: str
    rows: int  # that are stored

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        return {_name(self.stem, part): (self.rows, *shape[1:])}

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        values = read(_name(self.stem, part))
        return np.concatenate([values, np.repeat(values[:1], shape[0] - self.rows, axis=0)])


@dataclass(frozen=True)
class Repeated:
    """A vector, several times one behind the other."""

    stem: str
    times: int

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        return {_name(self.stem, part): (shape[0] // self.times,)}

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        return np.tile(read(_name(self.stem, part)), self.times)


@dataclass(frozen=True)
class TwiceMapped:
    """A bare vector that has gone through two maps with a gelu (erf) between them, as a projector's features do."""

    name: str
    shape: Shape  # as it is stored
    first: str
    inner: int  # values between the maps
    second: str

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        width = self.shape[-1]
        maps = {f"{self.first}.weight": (self.inner, width), f"{self.first}.bias": (self.inner,)}
        maps |= {f"{self.second}.weight": (*shape, self.inner), f"{self.second}.bias": shape}
        return {self.name: self.shape} | maps

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        x = read(self.name).reshape(-1).astype(np.float64)
        x = read(f"{self.first}.weight") @ x + read(f"{self.first}.bias")
        x = x * [0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x]
        return np.asarray(read(f"{self.second}.weight") @ x + read(f"{self.second}.bias"), np.float32)


@dataclass(frozen=True)
class Bound:
    """One number that values are kept under or over; where it is infinite, the last that float32 holds."""

    name: str

    def stored(self, part: str, shape: Shape) -> dict[str, Shape]:
        return {self.name: ()}

    def make(self, read: Read, part: str, shape: Shape) -> F32:
        most = np.finfo(np.float32).max
        return np.clip(read(self.name), -most, most).reshape(shape)


def _normed(x: Any, eps: float) -> Any:
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps)


def _name(stem: str, part: str) -> str:
    return f"{stem}.{part}" if part else stem


def sincos(side: int, width: int) -> F32:
    """A fixed table (side^2, width) of positions on a square: sines and cosines of the column, then of the row.

    In float64, as transformers' build_2d_sinusoidal_position_embedding.
    """
    angles = np.arange(side)[:, None] / 10000.0 ** (np.arange(width // 4) / (width // 4))
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    row, col = np.divmod(np.arange(side**2), side)
    return np.concatenate([waves[col], waves[row]], axis=1).astype(np.float32)
