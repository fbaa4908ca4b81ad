"""The same graphs in standard operators (opset 23) over the same bytes, for engines without com.microsoft kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from edgevlm.bundle.qtensor import BLOCK
from edgevlm.export.onnx_.ops import OnnxOps, optional_attributes
from edgevlm.export.onnx_.placement import Linear
from edgevlm.export.onnx_.products import PendingSum, Value
from edgevlm.export.onnx_.scan import delta_step
from edgevlm.models.spec import Attention, DeltaRule, State


class PortableOps(OnnxOps):
    """Weights are dequantized in the graph; attention keeps no shared buffer: present = past + new."""

    def _dynamic_linear(self, x: str, linear: Linear, bias: str | None) -> str:
        codes, scale = self._column_codes(linear)
        matrix = self.graph.node("DequantizeLinear", codes, scale, axis=1)
        return self._matmul(x, matrix, bias)

    def _block_linear(self, x: str, linear: Linear, bias: str | None) -> str:
        g = self.graph
        assert linear.scale is not None
        dtype = TensorProto.UINT4 if linear.kind == "int4" else TensorProto.UINT8
        shape = [linear.rows, linear.columns]
        codes = g.external(f"{linear.key}.codes", dtype, shape, linear.codes)
        blocks = [linear.rows, linear.columns // BLOCK]
        scale = g.external(f"{linear.key}.scale", TensorProto.FLOAT, blocks, linear.scale)
        zero = self.placement.zero_points(g, linear)
        matrix = g.node("DequantizeLinear", codes, scale, zero, axis=1, block_size=BLOCK)
        return self._matmul(x, g.node("Transpose", matrix, perm=[1, 0]), bias)

    def _matmul(self, x: str, matrix: str, bias: str | None) -> str:
        y = self.graph.node("MatMul", x, matrix)
        return self.graph.node("Add", y, bias) if bias else y

    def _embed_blocks(self, ids: str, linear: Linear) -> str:
        """Gather the rows' bytes, then undo the packing: standard Gather has no 4-bit type."""
        g, blocks = self.graph, linear.columns // BLOCK
        codes, scale = self._row_bytes(linear)
        rows = g.node("Gather", codes, ids)
        if linear.kind == "int4":
            low = g.node("BitwiseAnd", rows, g.constant(15, np.uint8))
            high = g.node("BitShift", rows, g.constant(4, np.uint8), direction="RIGHT")
            pair = [g.node("Unsqueeze", half, g.constant([-1])) for half in (low, high)]
            rows = g.node("Concat", *pair, axis=-1)
        shape = g.node("Concat", g.node("Shape", ids), g.constant([blocks, BLOCK]), axis=0)
        values = g.node("Cast", g.node("Reshape", rows, shape), to=TensorProto.FLOAT)
        zero = g.constant(8 if linear.kind == "int4" else 128, np.float32)
        scales = g.node("Unsqueeze", g.node("Gather", scale, ids), g.constant([-1]))
        scaled = g.node("Mul", g.node("Sub", values, zero), scales)
        flat = g.node("Concat", g.node("Shape", ids), g.constant([linear.columns]), axis=0)
        return g.node("Reshape", scaled, flat)

    def _norm_of_sum(self, x: PendingSum, weight: str, name: str, eps: float) -> str:
        return self.graph.node("RMSNormalization", self.value(x), weight, axis=-1, epsilon=eps)

    def _silu(self, x: str) -> str:
        return self.graph.node("Mul", x, self.graph.node("Sigmoid", x))

    def attend_beside(self, q: Value, k: Value, v: Value, name: str, a: Attention) -> str:
        return self._standard_attention(q, k, v, name, a)

    def begin_decoder(self, embeds: str, mask: str) -> None:
        """Position ids and visibility (batch, 1, new, past + new), for padding on either side."""
        super().begin_decoder(embeds, mask)
        g = self.graph
        counted = g.node("Sub", g.node("CumSum", mask, g.constant(1)), g.constant(1))
        counted = g.node("Max", counted, g.constant(0))
        newest = [self._past, self._total, g.constant([1])]
        self._positions = g.node("Slice", counted, *newest)
        self._new_mask = g.node("Slice", mask, *newest)
        zero, one, total = g.constant(0), g.constant(1), g.node("Squeeze", self._total, g.constant([0]))
        key = g.node("Range", zero, total, one)
        past = g.node("Squeeze", self._past, g.constant([0]))
        query = g.node("Unsqueeze", g.node("Range", past, total, one), g.constant([1]))
        real = g.node("Cast", g.node("Unsqueeze", mask, g.constant([1, 2])), to=TensorProto.BOOL)
        seen = g.node("And", real, g.node("LessOrEqual", key, query))
        # A padded query sees itself, or its softmax over nothing would be NaN and poison the values it leaves behind.
        self._visible: dict[int | None, str] = {None: g.node("Or", seen, g.node("Equal", key, query))}
        for window in sorted(filter(None, self._spec.windows)) if self._spec.mask == "causal" else ():
            near = g.node("Greater", key, g.node("Sub", query, g.constant(window)))
            self._visible[window] = g.node("And", self._visible[None], near)

    def kept_as(self, state: State) -> str:
        return "float32"

    def _cached_attention(self, x: str, w: str, a: Attention, state: str, mask: str | None) -> str:
        g, sizes = self.graph, (a.heads * a.head_dim, *(a.kv_heads * a.head_dim,) * 2)
        names = tuple(f"{w}.{name}" for name in "qkv")
        parts = self.linear(x, *zip(names, sizes, strict=True), bias=a.bias)
        if a.norm_after or a.second_rope:
            q, k, v = self._turned_apart(parts, w, a)
        else:
            q, k, v = self._normed(parts, w, a)
            q, k = self._rotate(q, a, a.heads), self._rotate(k, a, a.kv_heads)
        if a.cache == "int8":  # the same numbers, kept as floats: the standard operator has no other cache
            steps = self._steps(state, (a.kv_heads * a.head_dim,))
            k, v = (self._rounded(part, step) for part, step in zip((k, v), steps, strict=True))
        past = [f"past_key_values.{state}.{side}" for side in ("key", "value")]
        present = [f"present.{state}.{side}" for side in ("key", "value")]
        out, *_ = g.nodes(
            "Attention",
            q,
            k,
            v,
            self._seen(a, mask),
            *past,
            outputs=[f"{w}.attention", *present],
            q_num_heads=a.heads,
            kv_num_heads=a.kv_heads,
            **optional_attributes(a),
        )
        return out

    def _rounded(self, x: str, steps: str) -> str:
        """(B, new, channels) at the nearest 8-bit code."""
        g, zero = self.graph, self.graph.constant(0, np.int8)
        zeros = g.node("Expand", zero, g.node("Shape", steps))
        codes = g.node("QuantizeLinear", x, steps, zeros, axis=2)
        return g.node("DequantizeLinear", codes, steps, zeros, axis=2)

    def _shared_attention(self, x: str, w: str, a: Attention, state: str, mask: str | None) -> str:
        """Heads apart, as another layer's keys and values are."""
        g, rows = self.graph, a.heads * a.head_dim
        (q,) = self._normed(self.linear(x, (f"{w}.q", rows), bias=a.bias), w, a)
        heads = g.node("Reshape", self._rotate(q, a, a.heads), g.constant([0, 0, a.heads, a.head_dim]))
        heads = g.node("Transpose", heads, perm=[0, 2, 1, 3])
        held = [f"present.{state}.{side}" for side in ("key", "value")]
        out = g.node("Attention", heads, *held, self._seen(a, mask), **optional_attributes(a))
        merged = g.node("Transpose", out, perm=[0, 2, 1, 3])
        return g.nodes("Reshape", merged, g.constant([0, 0, -1]), outputs=[f"{w}.attention"])[0]

    def _seen(self, a: Attention, mask: str | None) -> str:
        return self._visible[a.window] if self._spec.mask == "causal" else str(mask)

    def _rotate(self, x: str, a: Attention, count: int) -> str:
        g = self.graph
        if self._spec.is_plain:
            tables = [self._rope(a.rope, 0), self._rope(a.rope, 1), self._positions]
        else:
            rows = [g.node("Slice", self._rope(a.rope, part), self._past, self._total) for part in (0, 1)]
            tables = [g.node("Unsqueeze", part, g.constant([0])) for part in rows]
        return g.node("RotaryEmbedding", x, *tables, num_heads=count, **self._turned(a))

    def causal_conv(self, x: Value, name: str, width: int, kernel: int, state: str) -> str:
        g = self.graph
        real = g.node("Cast", g.node("Unsqueeze", self._new_mask, g.constant([2])), to=TensorProto.FLOAT)
        whole = g.node("Concat", f"past_key_values.{state}", g.node("Mul", self.value(x), real), axis=1)
        end = g.constant([np.iinfo(np.int64).max])
        g.nodes("Slice", whole, g.constant([1 - kernel]), end, g.constant([1]), outputs=[f"present.{state}"])
        turned = g.node("Transpose", whole, perm=[0, 2, 1])
        out = g.node("Conv", turned, self._taps(name), group=width, kernel_shape=[kernel])
        return g.node("Transpose", out, perm=[0, 2, 1])

    def correct(self, x: Value, decay: Value, rate: Value, r: DeltaRule, state: str) -> str:
        """Position by position, as the rule says."""
        g, (q, k, v) = self.graph, self._unit_keys(x, r)
        served = g.constant(np.arange(r.value_heads) // (r.value_heads // r.key_heads))
        q, k = (g.node("Gather", part, served, axis=2) for part in (q, k))
        q = g.node("Mul", q, g.constant(r.key_dim**-0.5, np.float32))
        v = g.node("Reshape", v, g.constant([0, 0, r.value_heads, r.value_dim]))
        kept = g.node("Exp", self.value(decay))
        _, out = g.nodes(
            "Scan", f"past_key_values.{state}", q, k, v, kept, self.value(rate),
            outputs=[f"present.{state}", f"{state}.out"], body=delta_step(g), num_scan_inputs=5,
            scan_input_axes=[1] * 5, scan_output_axes=[1],
        )  # fmt: skip
        return out

    def _turned(self, a: Attention) -> dict[str, Any]:
        """The attribute of heads that turn in part."""
        size = self._spec.ropes[a.rope or ""].size
        return {} if size == a.head_dim else {"rotary_embedding_dim": size}

    def last(self, x: Value) -> str:
        g = self.graph
        steps = g.node("Range", g.constant(0), g.node("Squeeze", self._new, g.constant([0])), g.constant(1))
        index = g.node("ReduceMax", g.node("Mul", steps, self._new_mask), g.constant([1]), keepdims=1)
        return self._gather_rows(x, self._rows_up_to(index))
