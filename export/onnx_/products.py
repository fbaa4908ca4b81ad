"""Linear maps and the embedding in ONNX: one product for each form in which weights are stored."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto

from edgevlm.bundle.qtensor import BLOCK
from edgevlm.export.onnx_.graph import MICROSOFT, Graph
from edgevlm.export.onnx_.placement import DTYPES, Linear, OnnxWeights
from edgevlm.models.ops import Ops


@dataclass
class PendingSum:
    """x + y, not yet emitted: a norm behind it takes both terms in one kernel, and gives the sum as a second output."""

    x: str
    y: str
    value: str | None = None


Value = str | PendingSum


class ProductOps(Ops):
    """The part of `OnnxOps` that reads quantized weights. Emits nodes into `graph`; handles are value names."""

    backend = "The ONNX target"

    def __init__(self, graph: Graph, placement: OnnxWeights) -> None:
        self.graph, self.placement = graph, placement

    def value(self, x: Value) -> str:
        """The name of a value; a pending sum is emitted now."""
        if isinstance(x, str):
            return x
        if x.value is None:
            x.value = self.graph.node("Add", x.x, x.y)
        return x.value

    def linear(self, x: Value, *maps: tuple[str, int], bias: bool = False) -> list[Value]:
        out = self._product(self.value(x), tuple(name for name, _ in maps))
        sizes = [rows for _, rows in maps]
        if len(sizes) == 1:
            return [out]
        if len(set(sizes)) == 1:
            return list(self.graph.nodes("Split", out, outputs=len(sizes), axis=-1, num_outputs=len(sizes)))
        return list(self.graph.nodes("Split", out, self.graph.constant(sizes), outputs=len(sizes), axis=-1))

    def _product(self, x: str, names: tuple[str, ...]) -> str:
        """One product with the matrices of several maps on top of each other."""
        linear = self.placement.linear(names)
        form = self.placement.form(f"{names[0]}.weight")
        bias = self.placement.bias(self.graph, linear)
        if linear.kind in DTYPES:
            return self._float_linear(x, linear, bias)
        if form.dynamic:
            return self._dynamic_linear(x, linear, bias)
        return self._block_linear(x, linear, bias)

    def _float_linear(self, x: str, linear: Linear, bias: str | None) -> str:
        g = self.graph
        matrix = self._float_matrix(linear)
        if linear.layout == "rows":
            matrix = g.node("Transpose", matrix, perm=[1, 0])
        y = g.node("MatMul", x, matrix)
        return g.node("Add", y, bias) if bias else y

    def _float_matrix(self, linear: Linear) -> str:
        shape = [linear.rows, linear.columns] if linear.layout == "rows" else [linear.columns, linear.rows]
        matrix = self.graph.external(f"{linear.key}.weight", DTYPES[linear.kind], shape, linear.codes)
        if linear.kind == "fp16":  # CPUs compute in float32; the cast is folded when the session is made
            matrix = self.graph.node("Cast", matrix, to=TensorProto.FLOAT)
        return matrix

    def _dynamic_linear(self, x: str, linear: Linear, bias: str | None) -> str:
        codes, scale = self._column_codes(linear)
        inputs = [x, codes, scale] + (["", bias] if bias else [])
        return self.graph.node("DynamicQuantizeMatMul", *inputs, domain=MICROSOFT)

    def _column_codes(self, linear: Linear) -> tuple[str, str]:
        g = self.graph
        assert linear.scale is not None
        shape = [linear.columns, linear.rows]
        codes = g.external(f"{linear.key}.weight", TensorProto.INT8, shape, linear.codes)
        return codes, g.external(f"{linear.key}.scale", TensorProto.FLOAT, [linear.rows], linear.scale)

    def _block_linear(self, x: str, linear: Linear, bias: str | None) -> str:
        g, blocks = self.graph, linear.columns // BLOCK
        bits = 4 if linear.kind == "int4" else 8
        assert linear.scale is not None
        shape = [linear.rows, blocks, BLOCK * bits // 8]
        codes = g.external(f"{linear.key}.weight", TensorProto.UINT8, shape, linear.codes)
        scale = g.external(f"{linear.key}.scale", TensorProto.FLOAT, [linear.rows, blocks], linear.scale)
        # Said though it is the operator's own: on arm64 the kernel for products without zero points rounds their scales
        # to bfloat16 and has one range of activations for a row instead of one for a block (KleidiAI's).
        zero = self.placement.packed_zero_points(g, linear) if bits == 4 else ""
        inputs = [x, codes, scale, *([zero, "", bias] if bias else [zero] * (bits == 4))]
        # Accuracy level 4 lets the kernel quantize activations to int8 per block, 20-40 % faster than float.
        return g.node(
            "MatMulNBits",
            *inputs,
            domain=MICROSOFT,
            K=linear.columns,
            N=linear.rows,
            bits=bits,
            block_size=BLOCK,
            accuracy_level=4,
        )

    def embed(self, ids: str, name: str, rows: int, width: int) -> str:
        g = self.graph
        linear = self.placement.linear((name,), rows=True)
        if linear.kind in DTYPES:
            shape = [linear.rows, linear.columns]
            table = g.external(f"{name}.weight", DTYPES[linear.kind], shape, linear.codes)
            found = g.node("Gather", table, ids)
            return found if linear.kind == "fp32" else g.node("Cast", found, to=TensorProto.FLOAT)
        return self._embed_blocks(ids, linear)

    def _embed_blocks(self, ids: str, linear: Linear) -> str:
        bits = 4 if linear.kind == "int4" else 8
        codes, scale = self._row_bytes(linear)
        return self.graph.node(
            "GatherBlockQuantized",
            codes,
            ids,
            scale,
            domain=MICROSOFT,
            bits=bits,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=1,
        )

    def _row_bytes(self, linear: Linear) -> tuple[str, str]:
        g = self.graph
        assert linear.scale is not None
        width = linear.columns // 2 if linear.kind == "int4" else linear.columns
        codes = g.external(f"{linear.key}.rows", TensorProto.UINT8, [linear.rows, width], linear.codes)
        shape = [linear.rows, linear.columns // BLOCK]
        return codes, g.external(f"{linear.key}.scale", TensorProto.FLOAT, shape, linear.scale)
