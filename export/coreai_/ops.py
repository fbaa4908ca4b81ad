"""The Core AI backend: `edgevlm.models` played on coreai.authoring, in float32.

Only basic operations (matmul, softmax, mean, convolution), so that it shares nothing with the fused kernels it is a
second opinion on. coreai-core 1.0.0b3; its operations check shapes and element types when the module is closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from edgevlm.errors import EdgeVLMError
from edgevlm.models.blocks import rope_inputs
from edgevlm.models.ops import Ops, Weights, X
from edgevlm.models.spec import Attention, Conv, Norm
from edgevlm.runtimes.coreai import state_input
from edgevlm.types import F32


def dims(*values: int) -> npt.NDArray[np.uint32]:
    """Shapes, permutations and sizes: the compiler refuses signed integers here, and wants them in `places`."""
    return np.array(values, np.uint32)


def places(*values: int) -> npt.NDArray[np.int32]:
    """Axes to reduce and the corners of slices."""
    return np.array(values, np.int32)


class CoreAiOps(Ops):
    """Emits one graph of fixed shapes. X is a coreai.authoring.Value: activations are (1, S, D), heads (B, H, S, d).

    inputs: the graph's by name, among them masks (0 where a row may look), select (1, 1, S) with a one at the position
    that gets logits, and each growing state (1, kv heads, past, head size).
    """

    backend = "The Core AI target"

    def __init__(self, authoring: Any, weights: Weights, inputs: Mapping[str, X]) -> None:
        self.a, self.weights, self.inputs = authoring, weights, inputs
        self.new: dict[str, X] = {}  # what this call adds to each state, (1, kv heads, S, head size)

    def _weight(self, name: str) -> F32:
        return np.ascontiguousarray(self.weights.read(name), np.float32)

    def _matmul(self, x: X, y: X) -> X:
        return self.a.broadcasting_batch_matmul(x, y)

    def _reshape(self, x: X, *shape: int) -> X:
        return self.a.reshape(x, dims(*shape))

    def _swap(self, x: X, *order: int) -> X:
        return self.a.transpose(x, dims(*order))

    def _split(self, x: X, *sizes: int, axis: int) -> list[X]:
        return list(self.a.split(x, dims(*sizes), axis))

    def input(self, name: str) -> X:
        return self.inputs[name] if name in self.inputs else self._lacks(name)

    # Linear maps

    def linear(self, x: X, *maps: tuple[str, int], bias: bool = False) -> list[X]:
        return [self._product(x, name, bias) for name, _ in maps]

    def _product(self, x: X, name: str, bias: bool) -> X:
        out = self._matmul(x, np.ascontiguousarray(self._weight(f"{name}.weight").T))
        return self.add(out, self._weight(f"{name}.bias")) if bias else out

    def patch_embed(self, pixels: X, name: str, width: int, patch: int, bias: bool = True) -> X:
        x = self.a.conv2d(pixels, self._weight(f"{name}.weight"), dims(patch, patch), dims(1, 1), np.uint32(1))
        rows, columns = x.type.shape[2:]
        x = self._swap(self._reshape(x, 1, width, rows * columns), 0, 2, 1)
        return self.add(x, self._weight(f"{name}.bias")) if bias else x

    def flatten(self, pixels: X) -> X:
        _, channels, rows, columns = pixels.type.shape
        return self._swap(self._reshape(pixels, 1, channels, rows * columns), 0, 2, 1)

    def conv2d(self, x: X, name: str, grid: tuple[int, int], c: Conv) -> X:
        cells = self._reshape(self._swap(x, 0, 2, 1), 1, x.type.shape[2], *grid)
        cells = self.a.pad(cells, dims(0, 0, 0, 0, *c.zeros, *c.zeros), np.float32(0))
        kernel, steps = self._weight(f"{name}.weight"), dims(c.stride, c.stride)
        out = self.flatten(self.a.conv2d(cells, kernel, steps, dims(1, 1), np.uint32(c.groups)))
        return self.add(out, self._weight(f"{name}.bias")) if c.bias else out

    def mean(self, x: X) -> X:
        return self.a.reduce_mean(x, places(1))

    def plain_linear(self, x: X, name: str, width: int, bias: bool = False) -> X:
        return self._product(x, name, bias)

    def embed(self, ids: X, name: str, rows: int, width: int) -> NoReturn:
        raise EdgeVLMError("Core AI programs take embeddings, not ids: look rows of the table up before.")

    # Positions

    def add_table(self, x: X, name: str, rows: int, width: int) -> X:
        return self.add(x, self._weight(name)[None])

    def add_mixed(self, x: X, name: str, rows: int, width: int, places: str, shares: str) -> X:
        (patches, count), table = self.inputs[places].type.shape, self._weight(name)
        found = self.a.gather_nd(table, self._reshape(self.inputs[places], patches * count, 1))
        shared = self._reshape(self.inputs[shares], patches, 1, count)
        mixed = self._matmul(shared, self._reshape(found, patches, count, width))
        return self.add(x, self._reshape(mixed, 1, patches, width))

    def add_shares(self, x: X, name: str, rows: int, width: int, shares: str) -> X:
        mixed = self._matmul(self.inputs[shares], self._weight(name))
        return self.add(x, self._reshape(mixed, 1, mixed.type.shape[0], width))

    def beside(self, parts: list[X]) -> X:
        return self.a.concat(2, parts)

    def split(self, x: X, *widths: int) -> list[X]:
        return self._split(x, *widths, axis=2)

    def prepend(self, x: X, name: str, width: int) -> X:
        return self.a.concat(1, [self._weight(name)[None, None], x])

    def drop_first(self, x: X) -> X:
        return self._split(x, 1, x.type.shape[1] - 1, axis=1)[1]

    def last(self, x: X) -> X:
        return self._matmul(self.inputs["select"], x)

    def take(self, x: X, index: str) -> X:
        _, rows, width = x.type.shape
        (count,) = self.inputs[index].type.shape
        taken = self.a.gather_nd(self._reshape(x, rows, width), self._reshape(self.inputs[index], count, 1))
        return self._reshape(taken, 1, count, width)

    def group(self, x: X, count: int, width: int) -> X:
        return self._reshape(x, 1, x.type.shape[1] // count, count * width)

    def pixel_shuffle(self, x: X, grid: tuple[int, int], scale: int, width: int) -> X:
        rows, columns = (side // scale for side in grid)
        cells = self._swap(self._reshape(x, rows, scale, columns, scale * width), 0, 2, 1, 3)
        return self._reshape(cells, 1, rows * columns, width * scale**2)

    def pixel_unshuffle(self, x: X, grid: tuple[int, int], scale: int, width: int) -> X:
        rows, columns = (side // scale for side in grid)
        cells = self._swap(self._reshape(x, rows, columns, scale, scale * width), 0, 2, 1, 3)
        return self._reshape(cells, 1, rows * columns * scale**2, width)

    def mean_pool(self, x: X, grid: tuple[int, int], scale: int, width: int) -> X:
        rows, columns = (side // scale for side in grid)
        lines = self.a.reduce_mean(self._reshape(x, rows, scale, columns, scale * width), places(1))
        cells = self.a.reduce_mean(self._reshape(lines, rows * columns, scale, width), places(1))
        return self._reshape(cells, 1, rows * columns, width)

    # Element by element

    def vector(self, name: str, size: int) -> X:
        return self._weight(name)

    def add(self, x: X, y: X) -> X:
        return self.a.broadcasting_add(x, y)

    def mul(self, x: X, y: X | float) -> X:
        return self.a.broadcasting_mul(x, np.float32(y) if isinstance(y, float) else y)

    def _mean(self, x: X) -> X:
        return self.a.reduce_mean(x, places(len(x.type.shape) - 1))

    def norm(self, x: X, name: str, spec: Norm) -> X:
        """x / sqrt(mean(x^2) + eps) * weight: of centred rows, the mean square is the variance."""
        x = self.a.broadcasting_sub(x, self._mean(x)) if spec.kind == "layer" else x
        inverse = self.a.rsqrt(self.add(self._mean(self.mul(x, x)), np.float32(spec.eps)))
        x = self.mul(x, inverse)
        x = self.mul(x, self._weight(f"{name}.weight")) if spec.weight else x
        return self.add(x, self._weight(f"{name}.bias")) if spec.kind == "layer" else x

    def act(self, x: X, kind: str) -> X:
        if kind in ("gelu", "gelu_tanh"):
            return self.a.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")
        if kind == "quick_gelu":
            return self.mul(x, self.a.sigmoid(self.mul(x, 1.702)))
        return self.a.softmax(x, len(x.type.shape) - 1) if kind == "softmax" else getattr(self.a, kind)(x)

    # Attention

    def heads(self, x: X, count: int, size: int) -> X:
        return self._swap(self._reshape(x, 1, x.type.shape[1], count, size), 0, 2, 1, 3)

    def merge(self, x: X) -> X:
        _, heads, rows, size = x.type.shape
        return self._reshape(self._swap(x, 0, 2, 1, 3), 1, rows, heads * size)

    def windows(self, x: X, size: int) -> X:
        _, heads, rows, width = x.type.shape
        return self._swap(self._reshape(x, heads, rows // size, size, width), 1, 0, 2, 3)

    def unwindow(self, x: X, count: int | None = None) -> X:
        count, heads, size, width = x.type.shape
        return self._reshape(self._swap(x, 1, 0, 2, 3), 1, heads, count * size, width)

    def rotate(self, x: X, rope: str, size: int, second: str | None = None) -> X:
        cos, sin, cos_2, sin_2 = (self.inputs[name] for by in (rope, second or rope) for name in rope_inputs(by))
        half, whole = cos.type.shape[-1], x.type.shape[-1]
        sizes = [half, half, whole - 2 * half] if whole > 2 * half else [half, half]
        first, last, *rest = self._split(x, *sizes, axis=3)
        rotated = self.a.broadcasting_sub(self.mul(first, cos), self.mul(last, sin))
        return self.a.concat(3, [rotated, self.add(self.mul(last, cos_2), self.mul(first, sin_2)), *rest])

    def attend(self, q: X, k: X, v: X, a: Attention, mask: str | None) -> X:
        k, v = (self._repeat(part, a.heads // a.kv_heads) for part in (k, v))
        scale = a.head_dim**-0.5 if a.scale is None else a.scale
        scores = self.mul(self._matmul(q, self._swap(k, 0, 1, 3, 2)), scale)
        if a.softcap is not None:
            scores = self.mul(self.a.tanh(self.mul(scores, 1 / a.softcap)), a.softcap)
        scores = scores if mask is None else self.add(scores, self.input(mask))
        return self._matmul(self.a.softmax(scores, 3), v)

    def _repeat(self, x: X, group: int) -> X:
        """(1, kv heads, T, head size) to (1, heads, T, head size): query heads of a group share a key head."""
        if group == 1:
            return x
        kv = x.type.shape[1]
        single = self._split(x, *[1] * kv, axis=1) if kv > 1 else [x]
        return self.a.concat(1, [head for head in single for _ in range(group)])

    def append(self, state: str, x: X) -> X:
        """The past is an input and this call's rows are outputs, which the caller appends to the past."""
        self.new[state] = x
        return self.a.concat(2, [self.inputs[state_input(state)], x])
