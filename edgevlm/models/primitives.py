"""What a backend has: the operations that all others are made of. One that it lacks refuses the model by itself.

Values are opaque handles (`X`). Weights are named, never passed: a backend finds `<name>.weight` and `<name>.bias` in
its own store, and an operation is given every shape, so that playing a model on shapes (`record`) gives its whole
weight tree.

Shapes: B batch (tiles, windows; absent in eager's decoder), S positions, D channels, H heads.
"""

from __future__ import annotations

from typing import Any, NoReturn, Protocol, runtime_checkable

from edgevlm.errors import EdgeVLMError
from edgevlm.models.spec import Attention, Conv, DeltaRule, Norm
from edgevlm.types import F32, I64

X = Any


class Weights(Protocol):
    """Tensors by canonical name, read one at a time so that a model never has to fit in memory."""

    def read(self, name: str) -> F32: ...

    def __contains__(self, name: object) -> bool: ...


@runtime_checkable
class RowWeights(Weights, Protocol):
    """Weights that give rows of a table without making all of it."""

    def rows(self, name: str, ids: I64) -> F32:
        """Rows `ids` (S,) of the tensor (N, K): (S, K)."""


class Primitives:
    """EdgeVLMError where a model uses one that the backend lacks."""

    backend = "this backend"

    def _lacks(self, operation: str) -> NoReturn:
        raise EdgeVLMError(
            f"{self.backend} has no operation '{operation}', which this model needs: choose another target or runtime."
        )

    def linear(self, x: X, *maps: tuple[str, int], bias: bool = False) -> list[X]:
        """x @ W.T + b for each (name, rows), W (rows, D): one product in most backends, one value for each map."""
        self._lacks("linear")

    def patch_embed(self, pixels: X, name: str, width: int, patch: int, bias: bool = True) -> X:
        """Convolve (B, 3, height, width) with stride `patch` and flatten row by row to (B, S, D)."""
        self._lacks("patch_embed")

    def flatten(self, pixels: X) -> X:
        """(B, C, height, width) to (B, height * width, C), row by row."""
        self._lacks("flatten")

    def conv2d(self, x: X, name: str, grid: tuple[int, int], c: Conv) -> X:
        """(B, S, D) on a grid to (B, S / stride^2, width); the weight `name` is (width, D / groups, kernel, kernel)."""
        self._lacks("conv2d")

    def conv_at(self, x: X, name: str, width: int, kernel: int, places: str) -> X:
        """Depthwise convolution of (1, S, D) over any grid with the weight `name` (D, kernel^2).

        The input `places` (S, kernel^2) says at which position, counted from 1, each tap finds its value; 0: nowhere.
        """
        self._lacks("conv_at")

    def mean(self, x: X) -> X:
        """(B, S, D) to (B, 1, D): over positions."""
        self._lacks("mean")

    def mean_channels(self, x: X) -> X:
        """(B, S, D) to (B, S, 1): over channels."""
        self._lacks("mean_channels")

    def plain_linear(self, x: X, name: str, width: int, bias: bool = False) -> X:
        """x @ W.T + b for the weight `name`, which like a convolution's kernel is not quantized."""
        self._lacks("plain_linear")

    def embed(self, ids: X, name: str, rows: int, width: int) -> X:
        """Rows of the table `name` (rows, D) by ids (B, S)."""
        self._lacks("embed")

    def add_table(self, x: X, name: str, rows: int, width: int) -> X:
        """Add the weight `name` (S, D) to every (S, D) of x."""
        self._lacks("add_table")

    def add_mixed(self, x: X, name: str, rows: int, width: int, places: str, shares: str) -> X:
        """Add to each position of (1, S, D) a mixture of rows of the table `name` (rows, D): a table resampled.

        The inputs `places` and `shares` (S, K) say which rows, and how much of each.
        """
        self._lacks("add_mixed")

    def add_shares(self, x: X, name: str, rows: int, width: int, shares: str) -> X:
        """Add to each position of (1, S, D) its shares, the input `shares` (S, rows), of the table `name` (rows, D)."""
        self._lacks("add_shares")

    def add_input(self, x: X, name: str) -> X:
        """Add the input `name` (1, S, D) to (1, S, D)."""
        self._lacks("add_input")

    def ask(self, k: X, v: X, name: str, count: int, a: Attention, mask: str) -> X:
        """The queries `name` (count, D), a weight, attend to keys and values (1, S, D): (1, count, D)."""
        self._lacks("ask")

    def prepend(self, x: X, name: str, width: int) -> X:
        """(B, S, D) to (B, 1 + S, D): the weight `name` (D,) as a first position, a class token."""
        self._lacks("prepend")

    def drop_first(self, x: X) -> X:
        """(B, 1 + S, D) to (B, S, D)."""
        self._lacks("drop_first")

    def beside(self, parts: list[X]) -> X:
        """Several (B, S, D) to one (B, S, n * D): their channels one behind the other."""
        self._lacks("beside")

    def vector(self, name: str, size: int) -> X:
        """The weight `name` (size,) as a value."""
        self._lacks("vector")

    def norm(self, x: X, name: str, spec: Norm) -> X:
        self._lacks("norm")

    def act(self, x: X, kind: str) -> X:
        """ "silu", "gelu" (erf), "gelu_tanh", "quick_gelu" (x * sigmoid(1.702 x)), "relu", "tanh", "sigmoid",
        "softplus" or "softmax" (over the last axis)."""
        self._lacks("act")

    def add(self, x: X, y: X) -> X:
        """One of the two may have one channel, which counts for all of the other's."""
        self._lacks("add")

    def mul(self, x: X, y: X | float) -> X:
        """As in `add`."""
        self._lacks("mul")

    def mul_heads(self, x: X, y: X, count: int, size: int) -> X:
        """(B, S, count * size), each head by its own of y (B, S, count)."""
        self._lacks("mul_heads")

    def split(self, x: X, *widths: int) -> list[X]:
        """(B, S, sum of widths) to one value (B, S, width) for each."""
        self._lacks("split")

    def bound(self, name: str) -> X:
        """The weight `name` (1,) as a value, which may be as large as float32 holds."""
        return self.vector(name, 1)

    def clip(self, x: X, low: X, high: X) -> X:
        """No value below `low` or above `high`, of one value each."""
        self._lacks("clip")

    def widen(self, x: X, width: int) -> X:
        """(B, S, D) to (B, S, width) with zeros behind."""
        self._lacks("widen")

    def heads(self, x: X, count: int, size: int) -> X:
        """(B, S, count * size) to (B, count, S, size)."""
        self._lacks("heads")

    def merge(self, x: X) -> X:
        """(B, H, S, size) to (B, S, H * size)."""
        self._lacks("merge")

    def rotate(self, x: X, rope: str, size: int, second: str | None = None) -> X:
        """Rotate the first `size` values of each head in split halves by this call's rows, the input `rope`; what comes
        out as the second half by those of `second`, where there are such."""
        self._lacks("rotate")

    def attend(self, q: X, k: X, v: X, a: Attention, mask: str | None) -> X:
        """Softmax attention of (B, H, S, d) over (B, kv heads, T, d); mask: the name of an input, None sees all."""
        self._lacks("attend")

    def append(self, state: str, x: X) -> X:
        """Write (B, kv heads, S, d) at the end of a growing state; all that it holds."""
        self._lacks("append")

    def rounded(self, x: X, name: str, count: int, size: int) -> X:
        """(B, H, S, d) as 8-bit codes hold it: the nearest of -128 to 127 steps, the weight `name` (H * d)."""
        self._lacks("rounded")

    def grown(self, state: str) -> X:
        """What `append` gave for a growing state in this call: all that it holds."""
        self._lacks("grown")

    def held(self, state: str) -> X:
        """A state of kind "memory" as it is."""
        self._lacks("held")

    def correct(self, x: X, decay: X, rate: X, r: DeltaRule, state: str) -> X:
        """The delta rule over positions in their order: (B, value heads, S, value dim).

        x (B, S, channels): queries, keys and values. Per value head, with queries and keys of unit length: the state
        M (key dim, value dim) becomes e^decay M, then M + k (rate (v - M^T k))^T; the result is M^T q / sqrt(key dim).
        decay, rate: (B, S, value heads).
        """
        self._lacks("correct")

    def norm_heads(self, x: X, name: str, spec: Norm) -> X:
        """The norm of each head by itself, (B, H, S, d)."""
        return self.norm(x, name, spec)

    def norm_parts(self, x: X, name: str, spec: Norm, count: int, size: int) -> X:
        """(B, S, count * size): the norm of each part by itself."""
        return self.merge(self.norm_heads(self.heads(x, count, size), name, spec))

    def causal_conv(self, x: X, name: str, width: int, kernel: int, state: str) -> X:
        """Depthwise causal convolution over positions with the weight `name` (D, kernel); keeps its last inputs."""
        self._lacks("causal_conv")

    def windows(self, x: X, size: int) -> X:
        """(B, H, S, d) to (B * S / size, H, size, d): positions in groups of `size`, which then see only each other."""
        self._lacks("windows")

    def unwindow(self, x: X, count: int | None = None) -> X:
        """(B * W, H, size, d) to (B, H, W * size, d). count: W, or None for all as one."""
        self._lacks("unwindow")

    def apart(self, x: X, count: int, width: int) -> X:
        """(B, S, count * D) to (B, S * count, D): what `group` has put together."""
        self._lacks("apart")

    def pixel_unshuffle(self, x: X, grid: tuple[int, int], scale: int, width: int) -> X:
        """(B, S / scale^2, D * scale^2) to (B, S, D) on a grid: what `pixel_shuffle` has put together."""
        self._lacks("pixel_unshuffle")

    def pixel_shuffle(self, x: X, grid: tuple[int, int], scale: int, width: int) -> X:
        """(B, S, D) on a grid to (B, S / scale^2, D * scale^2): scale x scale neighbours become channels."""
        self._lacks("pixel_shuffle")

    def mean_pool(self, x: X, grid: tuple[int, int], scale: int, width: int) -> X:
        """(B, S, D) on a grid to (B, S / scale^2, D): the mean of scale x scale neighbours."""
        self._lacks("mean_pool")

    def group(self, x: X, count: int, width: int) -> X:
        """(B, S, D) to (B, S / count, count * D): consecutive positions become channels."""
        self._lacks("group")

    def mean_group(self, x: X, count: int, width: int) -> X:
        """(B, S, D) to (B, S / count, D): the mean of consecutive positions."""
        first, *rest = self.split(self.group(x, count, width), *[width] * count)
        for part in rest:
            first = self.add(first, part)
        return self.mul(first, 1 / count)

    def take(self, x: X, index: str) -> X:
        """(1, S, D) to (1, N, D): the rows that the input `index` (N,) names."""
        self._lacks("take")

    def mix(self, x: X, places: str, shares: str) -> X:
        """(1, S, D) to (1, N, D): each a sum of the rows that the input `places` (N, K) names, times its `shares`."""
        self._lacks("mix")

    def input(self, name: str) -> X:
        self._lacks("input")

    def last(self, x: X) -> X:
        """The last real position of each sequence."""
        self._lacks("last")

    def named(self, name: str, x: X) -> X:
        """Mark a value that traces compare between backends."""
        return x
