"""The ONNX backend, with ONNX Runtime's fused kernels (com.microsoft) where they fit."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from edgevlm.errors import EdgeVLMError
from edgevlm.export.onnx_.graph import MICROSOFT, Graph
from edgevlm.export.onnx_.placement import OnnxWeights
from edgevlm.export.onnx_.products import PendingSum, Value
from edgevlm.export.onnx_.recurrent import RecurrentOps
from edgevlm.inputs.layout import rope_rows
from edgevlm.models.blocks import rope_inputs
from edgevlm.models.spec import Attention, Decoder, Norm
from edgevlm.types import F32

UNSEEN = -1e9  # added to the score of a position that is not seen; softmax makes 0 of it


def optional_attributes(a: Attention) -> dict[str, Any]:
    """Attributes of attention operators that a model need not have."""
    return {name: value for name, value in (("scale", a.scale), ("softcap", a.softcap)) if value is not None}


class OnnxOps(RecurrentOps):
    """Emits nodes into `graph`; handles are value names. Activations are (batch, positions, channels) float32."""

    def __init__(self, graph: Graph, placement: OnnxWeights, decoder: Decoder | None = None) -> None:
        super().__init__(graph, placement)
        self.decoder = decoder
        self._masks: dict[str, str] = {}

    # Towers

    def patch_embed(self, pixels: str, name: str, width: int, patch: int, bias: bool = True) -> str:
        g = self.graph
        inputs = [self.placement.plain(g, f"{name}.{part}") for part in ("weight", "bias")[: 1 + bias]]
        x = g.node("Conv", pixels, *inputs, kernel_shape=[patch] * 2, strides=[patch] * 2)
        flat = g.node("Reshape", x, g.constant([0, width, -1]))
        return g.node("Transpose", flat, perm=[0, 2, 1])

    def flatten(self, pixels: str) -> str:
        g = self.graph
        return g.node("Transpose", g.node("Reshape", pixels, g.constant([0, 0, -1])), perm=[0, 2, 1])

    def conv2d(
        self, x: Value, name: str, grid: tuple[int, int], width: int, kernel: int, stride: int, groups: int
    ) -> str:
        g = self.graph
        cells = g.node("Reshape", g.node("Transpose", self.value(x), perm=[0, 2, 1]), g.constant([0, -1, *grid]))
        parts = [self.placement.plain(g, f"{name}.{part}") for part in ("weight", "bias")]
        out = g.node(
            "Conv", cells, *parts, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4, group=groups
        )
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

    def patch_linear(self, x: str, name: str, width: int, bias: bool = False) -> str:
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

    def prepend(self, x: Value, name: str, width: int) -> str:
        g, x = self.graph, self.value(x)
        shape = g.node("Concat", g.node("Shape", x, start=0, end=1), g.constant([1, width]), axis=0)
        return g.node("Concat", g.node("Expand", self.placement.plain(g, name), shape), x, axis=1)

    def drop_first(self, x: Value) -> str:
        g = self.graph
        return g.node("Slice", self.value(x), g.constant([1]), g.constant([np.iinfo(np.int64).max]), g.constant([1]))

    def beside(self, parts: list[Value]) -> str:
        return self.graph.node("Concat", *map(self.value, parts), axis=-1)

    def pixel_shuffle(self, x: Value, grid: tuple[int, int], scale: int, width: int) -> str:
        g, (rows, cols) = self.graph, (side // scale for side in grid)
        split = g.node("Reshape", self.value(x), g.constant([-1, rows, scale, cols, scale, width]))
        moved = g.node("Transpose", split, perm=[0, 1, 3, 2, 4, 5])
        return g.node("Reshape", moved, g.constant([-1, rows * cols, width * scale**2]))

    def mean_pool(self, x: Value, grid: tuple[int, int], scale: int, width: int) -> str:
        g, (rows, cols) = self.graph, (side // scale for side in grid)
        split = g.node("Reshape", self.value(x), g.constant([-1, rows, scale, cols, scale, width]))
        means = g.node("ReduceMean", split, g.constant([2, 4]), keepdims=0)
        return g.node("Reshape", means, g.constant([-1, rows * cols, width]))

    def group(self, x: Value, count: int, width: int) -> str:
        return self.graph.node("Reshape", self.value(x), self.graph.constant([0, -1, count * width]))

    def take(self, x: Value, index: str) -> str:
        return self.graph.node("Gather", self.value(x), index, axis=1)

    def split(self, x: Value, count: int, width: int) -> list[Value]:
        return list(self.graph.nodes("Split", self.value(x), outputs=count, axis=-1, num_outputs=count))

    def widen(self, x: Value, width: int) -> str:
        g, x = self.graph, self.value(x)
        missing = g.node("Sub", g.constant([width]), g.node("Shape", x, start=-1))
        widths = g.node("Concat", g.constant([0]), missing, axis=0)
        return g.node("Pad", x, widths, "", g.constant([-1]))

    def input(self, name: str) -> str:
        return name

    # Elementwise

    def norm(self, x: Value, name: str, spec: Norm) -> str:
        g, p = self.graph, self.placement
        weight = p.plain(g, f"{name}.weight")
        if spec.kind == "layer":
            bias = p.plain(g, f"{name}.bias")
            return g.node("LayerNormalization", self.value(x), weight, bias, axis=-1, epsilon=spec.eps)
        if isinstance(x, PendingSum) and x.value is None:
            return self._norm_of_sum(x, weight, name, spec.eps)
        return g.node("RMSNormalization", self.value(x), weight, axis=-1, epsilon=spec.eps)

    def _norm_of_sum(self, x: PendingSum, weight: str, name: str, eps: float) -> str:
        outputs = [f"{name}.out", "", "", f"{name}.sum"]
        normed, _, _, x.value = self.graph.nodes(
            "SkipSimplifiedLayerNormalization", x.x, x.y, weight, outputs=outputs, domain=MICROSOFT, epsilon=eps
        )
        return normed

    def act(self, x: Value, kind: str) -> str:
        g, x = self.graph, self.value(x)
        if kind in ("gelu", "gelu_tanh"):
            return g.node("Gelu", x, approximate="tanh" if kind == "gelu_tanh" else "none")
        if kind == "silu":
            return self._silu(x)
        if kind == "quick_gelu":
            scaled = g.node("Mul", x, g.constant(1.702, np.float32))
            return g.node("Mul", x, g.node("Sigmoid", scaled))
        if kind == "softmax":
            return g.node("Softmax", x, axis=-1)
        return g.node({"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid", "softplus": "Softplus"}[kind], x)

    def _silu(self, x: str) -> str:
        return self.graph.node("QuickGelu", x, domain=MICROSOFT, alpha=1.0)  # x * sigmoid(1.0 * x)

    def add(self, x: Value, y: Value) -> PendingSum:
        return PendingSum(self.value(x), self.value(y))

    def mul(self, x: Value, y: Value | float) -> str:
        factor = self.graph.constant(y, np.float32) if isinstance(y, float) else self.value(y)
        return self.graph.node("Mul", self.value(x), factor)

    def mul_heads(self, x: Value, y: Value, count: int, size: int) -> str:
        g = self.graph
        heads = g.node("Reshape", self.value(x), g.constant([0, 0, count, size]))
        scaled = g.node("Mul", heads, g.node("Unsqueeze", self.value(y), g.constant([-1])))
        return g.node("Reshape", scaled, g.constant([0, 0, -1]))

    # Attention

    def attention(self, x: Value, w: str, a: Attention, width: int, state: str | None, mask: str | None) -> Value:
        if state is None:
            return self._encoder_attention(x, w, a, width, mask, None)
        self._check_decoder(a)
        out = self._gated(self._cached_attention(self.value(x), w, a, state, mask), x, w, a)
        return self.linear(out, (f"{w}.o", width), bias=a.out_bias)[0]

    def window_attention(self, x: Value, w: str, a: Attention, width: int, size: int, mask: str | None) -> Value:
        return self._encoder_attention(x, w, a, width, mask, size)

    def _encoder_attention(
        self, x: Value, w: str, a: Attention, width: int, mask: str | None, window: int | None
    ) -> Value:
        g, channels = self.graph, [a.heads * a.head_dim, *[a.kv_heads * a.head_dim] * 2]
        maps = [(f"{w}.{name}", rows) for name, rows in zip("qkv", channels, strict=True)]
        q, k, v = (self.value(part) for part in self.linear(x, *maps, bias=a.bias))
        q, k = self._head_norm(q, f"{w}.q_norm", a, a.heads), self._head_norm(k, f"{w}.k_norm", a, a.kv_heads)
        if a.rope is not None:
            rows = [g.node("Unsqueeze", name, g.constant([0])) for name in rope_inputs(a.rope)]
            q = g.node("RotaryEmbedding", q, *rows, num_heads=a.heads)
            k = g.node("RotaryEmbedding", k, *rows, num_heads=a.kv_heads)
        if window is not None:
            q, k, v = (
                g.node("Reshape", part, g.constant([-1, window, n]))
                for part, n in zip((q, k, v), channels, strict=True)
            )
        inputs = [q, k, v] + ([self._query_rows(mask, q, window)] if mask else [])
        (out,) = g.nodes(
            "Attention",
            *inputs,
            outputs=[f"{w}.attention"],
            q_num_heads=a.heads,
            kv_num_heads=a.kv_heads,
            **optional_attributes(a),
        )
        out = g.node("Reshape", out, g.constant([1, -1, channels[0]])) if window is not None else out
        return self.linear(out, (f"{w}.o", width), bias=a.out_bias)[0]

    def _query_rows(self, mask: str, q: str, window: int | None) -> str:
        """A mask of keys (B, 1, 1, T) with a row for each query, which the operator asks for."""
        g = self.graph
        if mask not in self._masks:
            count = g.constant([window]) if window is not None else g.node("Shape", q, start=1, end=2)
            shape = g.node("Concat", g.constant([1, 1]), count, g.constant([1]), axis=0)
            self._masks[mask] = g.node("Expand", mask, shape)
        return self._masks[mask]

    def _head_norm(self, x: str, name: str, a: Attention, count: int) -> str:
        """The norm of each head by itself, where the model has one."""
        if a.qk_norm is None:
            return x
        g = self.graph
        split = g.node("Reshape", x, g.constant([0, 0, count, a.head_dim]))
        return g.node("Reshape", self.norm(split, name, a.qk_norm), g.constant([0, 0, -1]))

    def _check_decoder(self, a: Attention) -> None:
        d = self.decoder
        assert d is not None, "a decoder graph needs its spec"
        if a.reads != "self" or a.rope is None:
            raise EdgeVLMError(
                "The ONNX target writes decoders with self-attention and RoPE, and this model asks for more: use the "
                "eager runtime."
            )
        if (turned := d.ropes[a.rope].size) % 16:
            raise EdgeVLMError(
                f"RoPE turns {turned} values of each head, and ONNX Runtime's attention turns multiples of 16 only: "
                "use another target."
            )

    def begin_decoder(self, embeds: str, mask: str) -> None:
        """Values that every layer shares: lengths from the attention mask (batch, past + new)."""
        g = self.graph
        self._new = g.node("Shape", embeds, start=1, end=2)
        self._total = g.node("Shape", mask, start=1, end=2)
        self._past = g.node("Sub", self._total, self._new)
        real = g.node("ReduceSum", mask, g.constant([1]), keepdims=0)
        self._last = g.node("Sub", real, g.constant(1))
        self._last32 = g.node("Cast", self._last, to=TensorProto.INT32)
        total = g.node("Squeeze", self._total, g.constant([0]))
        self._total32 = g.node("Cast", total, to=TensorProto.INT32)

    @property
    def _spec(self) -> Decoder:
        assert self.decoder is not None, "a decoder graph needs its spec"
        return self.decoder

    def _rope(self, name: str | None, part: int) -> str:
        """cos or sin, one row per position of the cache: a table of the whole context, or an input where a position is
        more than its index. GroupQueryAttention reads the new positions' rows alone, but wants one for each.
        """
        spec = self._spec
        assert name is not None, "checked before"
        if not spec.is_plain:
            return rope_inputs(name)[part]

        def make() -> F32:
            return rope_rows(spec.ropes[name], np.arange(spec.context_length)[None])[part]

        return self.placement.constant(self.graph, f"rope.{rope_inputs(name)[part]}", make)

    def _bias(self, mask: str) -> str:
        """What the kernel adds to scores for a mask (new, total): (1, 1, new, total)."""
        g = self.graph
        if mask not in self._masks:
            bias = g.node("Where", mask, g.constant(0, np.float32), g.constant(UNSEEN, np.float32))
            self._masks[mask] = g.node("Unsqueeze", bias, g.constant([0, 1]))
        return self._masks[mask]

    def _visibility(self, a: Attention, mask: str | None) -> tuple[list[str], dict[str, int]]:
        """GroupQueryAttention's last inputs and attributes for what a position sees. Only without its own causal mask
        does a bias show later positions; it then refuses a window, which the mask holds already."""
        if self._spec.mask != "causal":
            assert mask is not None, "a mask that is not causal is an input"
            return ["", self._bias(mask)], {"causal": 0}
        return [], {} if a.window is None else {"local_window_size": a.window}

    def _cached_attention(self, x: str, w: str, a: Attention, state: str, mask: str | None) -> str:
        sides = ("key", "value")
        past = [f"past_key_values.{state}.{side}" for side in sides]
        present = [f"present.{state}.{side}" for side in sides]
        names = tuple(f"{w}.{name}" for name in "qkv")
        if a.qk_norm is None:
            parts = [self._product(x, names), "", ""]
        else:
            rows = (a.heads * a.head_dim, *(a.kv_heads * a.head_dim,) * 2)
            q, k, v = (self.value(p) for p in self.linear(x, *zip(names, rows, strict=True), bias=a.bias))
            parts = [self._head_norm(q, f"{w}.q_norm", a, a.heads), self._head_norm(k, f"{w}.k_norm", a, a.kv_heads), v]
        seen, rule = self._visibility(a, mask)
        out, *_ = self.graph.nodes(
            "GroupQueryAttention",
            *parts,
            *past,
            self._last32,
            self._total32,
            self._rope(a.rope, 0),
            self._rope(a.rope, 1),
            *seen,
            outputs=[f"{w}.attention", *present],
            domain=MICROSOFT,
            num_heads=a.heads,
            kv_num_heads=a.kv_heads,
            do_rotary=1,
            **rule,
            **optional_attributes(a),
        )
        return out

    def last(self, x: Value) -> str:
        """Right-padded rows end before the last position: gather by length, not by shape."""
        g = self.graph
        offset = g.node("Sub", self._last, self._past)
        newest = g.node("Sub", self._new, g.constant([1]))
        index = g.node("Min", g.node("Max", offset, g.constant([0])), newest)
        index = g.node("Unsqueeze", index, g.constant([1]))
        rows = g.node("GatherND", self.value(x), index, batch_dims=1)
        return g.node("Unsqueeze", rows, g.constant([1]))
