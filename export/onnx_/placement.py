"""Puts weights into data files once and hands each graph variant initializers over the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from edgevlm.bundle.qtensor import BLOCK, QTensor
from edgevlm.export.onnx_.graph import Graph
from edgevlm.export.onnx_.storage import DataFile, Region, TensorTable, pack_rows
from edgevlm.export.quantize.recipe import Form
from edgevlm.models.model import ModelSpec
from edgevlm.models.ops import Weights
from edgevlm.models.record import weight_tree
from edgevlm.types import F32

DTYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}


@dataclass(frozen=True)
class Linear:
    """Packed matrices (sum of N, K) in a data file, side by side."""

    key: str
    kind: str
    rows: int
    columns: int
    layout: str  # "rows" (N, K) or "columns" (K, N)
    codes: Region
    scale: Region | None
    bias: Region | None


NOWHERE = Region("", 0, 0)


class OnnxWeights:
    """The weights of one graph file. `home` is its data file; a table another graph placed is shared, not repeated."""

    def __init__(
        self,
        weights: Weights,
        form: Callable[[str], Form],
        quantized: Callable[[str], QTensor],
        home: DataFile,
        table: TensorTable,
        shared: dict[str, Linear],
    ) -> None:
        self.weights, self.form, self.quantized = weights, form, quantized
        self.home, self.table, self.shared = home, table, shared
        self._linears: dict[str, Linear] = {}
        self._plain: dict[str, tuple[Region, tuple[int, ...]]] = {}
        self._zero_points: dict[int, Region] = {}

    def plain(self, graph: Graph, name: str, shape: tuple[int, ...] | None = None) -> str:
        """A float32 tensor as it is, or in another shape: norms, biases, positions, convolution kernels."""
        if name not in self._plain:
            self._plain[name] = self._place_plain(name, self.weights.read(name))
        region, own = self._plain[name]
        return graph.external(name, TensorProto.FLOAT, shape or own, region)

    def constant(self, graph: Graph, name: str, make: Callable[[], F32]) -> str:
        """A computed float32 table, such as RoPE's."""
        if name not in self._plain:
            array = make()
            self._plain[name] = (self.home.append(array), array.shape)
        region, shape = self._plain[name]
        return graph.external(name, TensorProto.FLOAT, shape, region)

    def _place_plain(self, name: str, array: F32) -> tuple[Region, tuple[int, ...]]:
        region = self.home.append(array)
        self.table.add(name, QTensor("fp32", array), region, "rows")
        return region, array.shape

    def bias(self, graph: Graph, linear: Linear) -> str | None:
        if linear.bias is None:
            return None
        return graph.external(f"{linear.key}.bias", TensorProto.FLOAT, [linear.rows], linear.bias)

    def zero_points(self, graph: Graph, linear: Linear) -> str:
        """Constant zero points (N, K / 32) for standard DequantizeLinear: 8 or 128 everywhere."""
        blocks = linear.columns // BLOCK
        bits, dtype = (4, TensorProto.UINT4) if linear.kind == "int4" else (8, TensorProto.UINT8)
        region = self._zero_point_bytes(bits, -(-linear.rows * blocks * bits // 8))
        return graph.external(f"{linear.key}.zero_points", dtype, [linear.rows, blocks], region)

    def packed_zero_points(self, graph: Graph, linear: Linear) -> str:
        """The same of 4 bits for MatMulNBits: (N, bytes of a row)."""
        shape = [linear.rows, -(-linear.columns // BLOCK // 2)]
        region = self._zero_point_bytes(4, shape[0] * shape[1])
        return graph.external(f"{linear.key}.zero_points", TensorProto.UINT8, shape, region)

    def _zero_point_bytes(self, bits: int, size: int) -> Region:
        if bits not in self._zero_points or self._zero_points[bits].length < size:
            self._zero_points[bits] = self.home.append(np.full(size, 0x88 if bits == 4 else 0x80, np.uint8))
        return self._zero_points[bits].part(0, size)

    def linear(self, names: tuple[str, ...], *, rows: bool = False) -> Linear:
        """Place (once) the matrices `<name>.weight`, packed; `rows` keeps float tables as (N, K) for look-ups."""
        key = "+".join(names)
        if key in self.shared:
            return self.shared[key]
        if key not in self._linears:
            self._linears[key] = self._place_linear(key, names, rows)
        return self._linears[key]

    def _place_linear(self, key: str, names: tuple[str, ...], rows: bool) -> Linear:
        form = self.form(f"{names[0]}.weight")
        by_rows = rows or (form.kind in ("int8", "int4") and not form.dynamic)
        tensors = [self.quantized(f"{name}.weight") for name in names]
        heights = [tensor.codes.shape[0] for tensor in tensors]
        total, columns = sum(heights), tensors[0].codes.shape[1]
        packed = form.kind in ("int8", "int4")
        if by_rows:
            codes = self.home.append(*(pack_rows(t) if packed else t.codes for t in tensors))
        else:
            codes = self.home.append(np.concatenate([t.codes.T for t in tensors], axis=1))
        scale = None
        if packed:
            scales = [t.scale_per_block() if by_rows else t.scale for t in tensors]
            scale = self.home.append(*(s.astype(np.float32) for s in scales if s is not None))
        self._describe(names, tensors, codes, scale, by_rows, total)
        bias = self._place_bias(names, heights)
        layout = "rows" if by_rows else "columns"
        return Linear(key, form.kind, total, columns, layout, codes, scale, bias)

    def _describe(
        self,
        names: tuple[str, ...],
        tensors: list[QTensor],
        codes: Region,
        scale: Region | None,
        by_rows: bool,
        total: int,
    ) -> None:
        row = 0
        for name, tensor in zip(names, tensors, strict=True):
            height = tensor.codes.shape[0]
            share = None
            if scale is not None:
                size = scale.length // total
                share = scale.part(row * size, height * size)
            if by_rows:
                size = codes.length // total
                part = codes.part(row * size, height * size)
                self.table.add(f"{name}.weight", tensor, part, "rows", scale=share)
            else:
                self.table.add(f"{name}.weight", tensor, codes, "columns", stride=total, start=row, scale=share)
            row += height

    def _place_bias(self, names: tuple[str, ...], heights: list[int]) -> Region | None:
        if not any(f"{name}.bias" in self.weights for name in names):
            return None
        parts = []
        for name, height in zip(names, heights, strict=True):
            present = f"{name}.bias" in self.weights
            parts.append(self.weights.read(f"{name}.bias") if present else np.zeros(height, np.float32))
        region = self.home.append(*parts)
        offset = 0
        for name, part in zip(names, parts, strict=True):
            if f"{name}.bias" in self.weights:
                self.table.add(f"{name}.bias", QTensor("fp32", part), region.part(offset, part.nbytes), "rows")
            offset += part.nbytes
        return region


class Unplaced(OnnxWeights):
    """Weights that are nowhere, in fp32: for graphs that are built to see whether they can be."""

    def __init__(self, spec: ModelSpec) -> None:
        self._tree = weight_tree(spec)

    def form(self, name: str) -> Form:
        return Form("fp32")

    def plain(self, graph: Graph, name: str, shape: tuple[int, ...] | None = None) -> str:
        return graph.external(name, TensorProto.FLOAT, shape or self._tree[name].shape, NOWHERE)

    def constant(self, graph: Graph, name: str, make: Callable[[], F32]) -> str:
        return graph.external(name, TensorProto.FLOAT, (), NOWHERE)

    def linear(self, names: tuple[str, ...], *, rows: bool = False) -> Linear:
        shapes = [self._tree[f"{name}.weight"].shape for name in names]
        bias = NOWHERE if any(f"{name}.bias" in self._tree for name in names) else None
        height, width = sum(shape[0] for shape in shapes), shapes[0][1]
        return Linear("+".join(names), "fp32", height, width, "rows" if rows else "columns", NOWHERE, None, bias)
