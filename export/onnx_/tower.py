"""What towers alone compute, in ONNX: patches, convolutions, tables of positions, neighbours that become one."""

from __future__ import annotations

import numpy as np

from edgevlm.export.onnx_.products import Value
from edgevlm.export.onnx_.recurrent import RecurrentOps
from edgevlm.models.spec import Attention, Conv


class TowerOps(RecurrentOps):
    """The part of `OnnxOps` that looks at pictures."""

    def patch_embed(self, pixels: str, name: str, width: int, patch: int, bias: bool = True) -> str:
        g = self.graph
        inputs = [self.placement.plain(g, f"{name}.{part}") for part in ("weight", "bias")[: 1 + bias]]
        x = g.node("Conv", pixels, *inputs, kernel_shape=[patch] * 2, strides=[patch] * 2)
        flat = g.node("Reshape", x, g.constant([0, width, -1]))
        return g.node("Transpose", flat, perm=[0, 2, 1])

    def flatten(self, pixels: str) -> str:
        g = self.graph
        return g.node("Transpose", g.node("Reshape", pixels, g.constant([0, 0, -1])), perm=[0, 2, 1])

    def conv2d(self, x: Value, name: str, grid: tuple[int, int], c: Conv) -> str:
        g = self.graph
        cells = g.node("Reshape", g.node("Transpose", self.value(x), perm=[0, 2, 1]), g.constant([0, -1, *grid]))
        parts = [self.placement.plain(g, f"{name}.{part}") for part in ("weight", "bias")[: 1 + c.bias]]
        before, behind = c.zeros
        out = g.node(
            "Conv", cells, *parts, kernel_shape=[c.kernel] * 2, strides=[c.stride] * 2,
            pads=[before, before, behind, behind], group=c.groups,
        )  # fmt: skip
        return self.flatten(out)

    def conv_at(self, x: Value, name: str, width: int, kernel: int, places: str) -> str:
        """A tap at a time: a row of zeros stands before all others."""
        g, taps = self.graph, self.placement.plain(self.graph, f"{name}.weight")
        padded = g.node("Concat", g.constant(np.zeros((1, 1, width)), np.float32), self.value(x), axis=1)
        parts = []
        for number in range(kernel**2):
            column = g.constant(number)
            found = g.node("Gather", padded, g.node("Gather", places, column, axis=1), axis=1)
            parts.append(g.node("Mul", found, g.node("Gather", taps, column, axis=1)))
        return g.node("Sum", *parts)

    def mean(self, x: Value) -> str:
        return self.graph.node("ReduceMean", self.value(x), self.graph.constant([1]), keepdims=1)

    def mean_channels(self, x: Value) -> str:
        return self.graph.node("ReduceMean", self.value(x), self.graph.constant([-1]), keepdims=1)

    def plain_linear(self, x: str, name: str, width: int, bias: bool = False) -> str:
        g = self.graph
        matrix = g.node("Transpose", self.placement.plain(g, f"{name}.weight"), perm=[1, 0])
        out = g.node("MatMul", x, matrix)
        return g.node("Add", out, self.placement.plain(g, f"{name}.bias")) if bias else out

    def add_table(self, x: Value, name: str, rows: int, width: int) -> str:
        return self.graph.node("Add", self.value(x), self.placement.plain(self.graph, name))

    def add_mixed(self, x: Value, name: str, rows: int, width: int, places: str, shares: str) -> str:
        g = self.graph
        found = g.node("Gather", self.placement.plain(g, name), places)
        parts = g.node("Mul", found, g.node("Unsqueeze", shares, g.constant([-1])))
        return g.node("Add", self.value(x), g.node("ReduceSum", parts, g.constant([1]), keepdims=0))

    def add_shares(self, x: Value, name: str, rows: int, width: int, shares: str) -> str:
        g = self.graph
        return g.node("Add", self.value(x), g.node("MatMul", shares, self.placement.plain(g, name)))

    def add_input(self, x: Value, name: str) -> str:
        return self.graph.node("Add", self.value(x), name)

    def ask(self, k: Value, v: Value, name: str, count: int, a: Attention, mask: str) -> str:
        g = self.graph
        q = g.node("Unsqueeze", self.placement.plain(g, name), g.constant([0]))
        seen = g.node("Expand", mask, g.constant([1, 1, count, 1]))
        k, v = self.value(k), self.value(v)
        return g.node("Attention", q, k, v, seen, q_num_heads=a.heads, kv_num_heads=a.kv_heads)

    def prepend(self, x: Value, name: str, width: int) -> str:
        g, x = self.graph, self.value(x)
        shape = g.node("Concat", g.node("Shape", x, start=0, end=1), g.constant([1, width]), axis=0)
        return g.node("Concat", g.node("Expand", self.placement.plain(g, name), shape), x, axis=1)

    def drop_first(self, x: Value) -> str:
        g = self.graph
        return g.node("Slice", self.value(x), g.constant([1]), g.constant([np.iinfo(np.int64).max]), g.constant([1]))

    def pixel_shuffle(self, x: Value, grid: tuple[int, int], scale: int, width: int) -> str:
        g, (rows, cols) = self.graph, (side // scale for side in grid)
        split = g.node("Reshape", self.value(x), g.constant([-1, rows, scale, cols, scale, width]))
        moved = g.node("Transpose", split, perm=[0, 1, 3, 2, 4, 5])
        return g.node("Reshape", moved, g.constant([-1, rows * cols, width * scale**2]))

    def pixel_unshuffle(self, x: Value, grid: tuple[int, int], scale: int, width: int) -> str:
        g, (rows, cols) = self.graph, (side // scale for side in grid)
        split = g.node("Reshape", self.value(x), g.constant([-1, rows, cols, scale, scale, width]))
        moved = g.node("Transpose", split, perm=[0, 1, 3, 2, 4, 5])
        return g.node("Reshape", moved, g.constant([-1, rows * cols * scale**2, width]))

    def apart(self, x: Value, count: int, width: int) -> str:
        return self.graph.node("Reshape", self.value(x), self.graph.constant([0, -1, width]))

    def mean_pool(self, x: Value, grid: tuple[int, int], scale: int, width: int) -> str:
        g, (rows, cols) = self.graph, (side // scale for side in grid)
        split = g.node("Reshape", self.value(x), g.constant([-1, rows, scale, cols, scale, width]))
        means = g.node("ReduceMean", split, g.constant([2, 4]), keepdims=0)
        return g.node("Reshape", means, g.constant([-1, rows * cols, width]))

    def group(self, x: Value, count: int, width: int) -> str:
        return self.graph.node("Reshape", self.value(x), self.graph.constant([0, -1, count * width]))

    def mix(self, x: Value, places: str, shares: str) -> str:
        g = self.graph
        found = g.node("Gather", self.value(x), places, axis=1)
        parts = g.node("Mul", found, g.node("Unsqueeze", shares, g.constant([-1])))
        return g.node("ReduceSum", parts, g.constant([2]), keepdims=0)

    def take(self, x: Value, index: str) -> str:
        return self.graph.node("Gather", self.value(x), index, axis=1)
