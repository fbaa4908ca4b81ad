"""The ONNX backend, with ONNX Runtime's fused kernels (com.microsoft) where they fit."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from edgevlm.errors import EdgeVLMError
from edgevlm.export.onnx_.graph import MICROSOFT, Graph
from edgevlm.export.onnx_.placement import OnnxWeights
from edgevlm.export.onnx_.products import PendingSum, Value
from edgevlm.export.onnx_.tower import TowerOps
from edgevlm.models.blocks import rope_inputs
from edgevlm.models.rope import rope_rows
from edgevlm.models.spec import Attention, Decoder, Norm, State
from edgevlm.types import F32

UNSEEN = -1e9  # added to the score of a position that is not seen; softmax makes 0 of it


def optional_attributes(a: Attention) -> dict[str, Any]:
    """Attributes of attention operators that a model need not have."""
    return {name: value for name, value in (("scale", a.scale), ("softcap", a.softcap)) if value is not None}


class OnnxOps(TowerOps):
    """Emits nodes into `graph`; handles are value names. Activations are (batch, positions, channels) float32."""

    def __init__(self, graph: Graph, placement: OnnxWeights, decoder: Decoder | None = None) -> None:
        super().__init__(graph, placement)
        self.decoder = decoder
        self._masks: dict[str, str] = {}

    def beside(self, parts: list[Value]) -> str:
        return self.graph.node("Concat", *map(self.value, parts), axis=-1)

    def split(self, x: Value, *widths: int) -> list[Value]:
        g = self.graph
        return list(g.nodes("Split", self.value(x), g.constant(widths), outputs=len(widths), axis=-1))

    def clip(self, x: Value, low: Value, high: Value) -> str:
        g = self.graph
        return g.node("Min", g.node("Max", self.value(x), self.value(low)), self.value(high))

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
        if not spec.weight:
            ones = g.constant([1], np.float32)
            return g.node("RMSNormalization", self.value(x), ones, axis=-1, epsilon=spec.eps)
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
        attend = self._shared_attention if a.reads == "earlier" else self._cached_attention
        out: Value = self._gated(attend(self.value(x), w, a, state, mask), x, w, a)
        return self.linear(out, (f"{w}.o", width), bias=a.out_bias)[0]

    def window_attention(self, x: Value, w: str, a: Attention, width: int, size: int, mask: str | None) -> Value:
        return self._encoder_attention(x, w, a, width, mask, size)

    def window_cross(
        self, x: Value, y: Value, w: str, a: Attention, width: int, sizes: tuple[int, int], count: int
    ) -> Value:
        g, rows, kv_rows = self.graph, a.heads * a.head_dim, a.kv_heads * a.head_dim
        made = self.linear(x, (f"{w}.q", rows), bias=a.bias)
        made += self.linear(y, (f"{w}.k", kv_rows), (f"{w}.v", kv_rows), bias=a.bias)
        q, k, v = (
            g.node("Reshape", self.value(part), g.constant([-1, size, n]))
            for part, size, n in zip(made, (sizes[0], *sizes[1:] * 2), (rows, kv_rows, kv_rows), strict=True)
        )
        out = self.attend_beside(q, k, v, f"{w}.attention", a)
        out = g.node("Reshape", out, g.constant([-1, count * sizes[0], rows]))
        return self.linear(out, (f"{w}.o", width), bias=a.out_bias)[0]

    def attend_beside(self, q: Value, k: Value, v: Value, name: str, a: Attention) -> str:
        """MultiHeadAttention never holds all scores at once: less memory, and for 1024 keys two thirds of the time."""
        if a.heads != a.kv_heads or a.softcap is not None:
            return self._standard_attention(q, k, v, name, a)
        rest: dict[str, Any] = {"num_heads": a.heads, **optional_attributes(a)}
        parts = map(self.value, (q, k, v))
        return self.graph.nodes("MultiHeadAttention", *parts, outputs=[name], domain=MICROSOFT, **rest)[0]

    def _standard_attention(self, q: Value, k: Value, v: Value, name: str, a: Attention, *mask: str) -> str:
        heads: dict[str, Any] = {"q_num_heads": a.heads, "kv_num_heads": a.kv_heads, **optional_attributes(a)}
        return self.graph.nodes("Attention", *map(self.value, (q, k, v)), *mask, outputs=[name], **heads)[0]

    def _encoder_attention(
        self, x: Value, w: str, a: Attention, width: int, mask: str | None, window: int | None
    ) -> Value:
        g, channels = self.graph, [a.heads * a.head_dim, *[a.kv_heads * a.head_dim] * 2]
        maps = [(f"{w}.{name}", rows) for name, rows in zip("qkv", channels, strict=True)]
        q, k, v = self._normed(self.maps(x, *maps, bias=a.bias, clipped=a.clipped), w, a)
        if a.rope is not None:
            rows = [g.node("Unsqueeze", name, g.constant([0])) for name in rope_inputs(a.rope)]
            q = g.node("RotaryEmbedding", q, *rows, num_heads=a.heads)
            k = g.node("RotaryEmbedding", k, *rows, num_heads=a.kv_heads)
        if window is not None:
            q, k, v = (
                g.node("Reshape", part, g.constant([-1, window, n]))
                for part, n in zip((q, k, v), channels, strict=True)
            )
        if mask is None:
            out = self.attend_beside(q, k, v, f"{w}.attention", a)
        else:
            out = self._standard_attention(q, k, v, f"{w}.attention", a, self._query_rows(mask, q, window))
        out = g.node("Reshape", out, g.constant([1, -1, channels[0]])) if window is not None else out
        given: list[Value] = self.maps(out, (f"{w}.o", width), bias=a.out_bias, clipped=a.clipped)
        return given[0]

    def _query_rows(self, mask: str, q: str, window: int | None) -> str:
        """A mask of keys (B, 1, 1, T) with a row for each query, which the operator asks for."""
        g = self.graph
        if mask not in self._masks:
            count = g.constant([window]) if window is not None else g.node("Shape", q, start=1, end=2)
            shape = g.node("Concat", g.constant([1, 1]), count, g.constant([1]), axis=0)
            self._masks[mask] = g.node("Expand", mask, shape)
        return self._masks[mask]

    def norm_parts(self, x: Value, name: str, spec: Norm, count: int, size: int) -> str:
        g = self.graph
        split = g.node("Reshape", self.value(x), g.constant([0, 0, count, size]))
        return g.node("Reshape", self.norm(split, name, spec), g.constant([0, 0, -1]))

    def _normed(self, parts: list[Value], w: str, a: Attention) -> list[str]:
        """Queries, keys and values, or the first of them, with the norm of each head where the model has one."""
        found = []
        for part, x in zip("qkv", parts, strict=False):
            norm, count = a.v_norm if part == "v" else a.qk_norm, a.heads if part == "q" else a.kv_heads
            found.append(self.norm_parts(x, f"{w}.{part}_norm", norm, count, a.head_dim) if norm else self.value(x))
        return found

    def _check_decoder(self, a: Attention) -> None:
        d = self.decoder
        assert d is not None, "a decoder graph needs its spec"
        if a.reads == "memory" or a.rope is None or a.clipped:
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
        self._kept = g.option("num_logits_to_keep", 1)  # transformers' name, and transformers.js's
        total = g.node("Squeeze", self._total, g.constant([0]))
        self._total32 = g.node("Cast", total, to=TensorProto.INT32)

    def kept_as(self, state: State) -> str:
        """The type of a state in this graph."""
        return state.dtype

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

    def _steps(self, state: str, shape: tuple[int, ...]) -> list[str]:
        """What codes of keys and of values count, for each channel."""
        return [self.placement.plain(self.graph, f"decoder.layers.{state}.{side}_step", shape) for side in "kv"]

    def _visibility(self, a: Attention, mask: str | None) -> tuple[list[str], dict[str, Any]]:
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
        if a.qk_norm is None and a.v_norm is None and a.second_rope is None:
            parts = [self._product(x, names), "", ""]
        else:
            rows = (a.heads * a.head_dim, *(a.kv_heads * a.head_dim,) * 2)
            made = self.linear(x, *zip(names, rows, strict=True), bias=a.bias)
            parts = (self._turned_apart if a.norm_after or a.second_rope else self._normed)(made, w, a)
        return self._attended(parts, past, [f"{w}.attention", *present], a, mask, state)

    def _turned_apart(self, parts: list[Value], w: str, a: Attention) -> list[str]:
        """Queries, keys and values, the first two turned where the attention's own kernel cannot do it."""
        q, k, v = parts if a.norm_after else self._normed(parts, w, a)
        turned: list[Value] = [self._turn(self.value(q), a, a.heads), self._turn(self.value(k), a, a.kv_heads), v]
        return self._normed(turned, w, a) if a.norm_after else [self.value(part) for part in turned]

    def _turn(self, x: str, a: Attention, count: int) -> str:
        """(B, new, count * size), each half of a head by the new positions' rows of its own RoPE."""
        g, found = self.graph, []
        for half, rope in enumerate((a.rope, a.second_rope) if a.second_rope else (a.rope,)):
            rows = [g.node("Slice", self._rope(rope, part), self._past, self._total) for part in (0, 1)]
            rows = [g.node("Unsqueeze", part, g.constant([0])) for part in rows]
            size = self._spec.ropes[rope or ""].size
            share: dict[str, Any] = {} if size == a.head_dim else {"rotary_embedding_dim": size}
            turned = g.node("RotaryEmbedding", x, *rows, num_heads=count, **share)
            if a.second_rope is None:
                return turned
            halves = g.node("Reshape", turned, g.constant([0, 0, count, 2, -1]))
            found.append(g.node("Slice", halves, g.constant([half]), g.constant([half + 1]), g.constant([3])))
        return g.node("Reshape", g.node("Concat", *found, axis=3), g.constant([0, 0, -1]))

    def _shared_attention(self, x: str, w: str, a: Attention, state: str, mask: str | None) -> str:
        """Over another layer's keys and values, to which this one adds none: the kernel takes no more of length 0."""
        g, rows = self.graph, a.heads * a.head_dim
        if a.cache == "int8":
            raise EdgeVLMError(
                "Layers of this model read others' keys and values, which ONNX Runtime cannot where these have 8 "
                "bits: leave --kv-cache int8 out."
            )
        (q,) = self._normed(self.linear(x, (f"{w}.q", rows), bias=a.bias), w, a)
        none = g.node("Slice", q, g.constant([0, 0]), g.constant([0, a.kv_heads * a.head_dim]), g.constant([1, 2]))
        past = [f"present.{state}.{side}" for side in ("key", "value")]
        return self._attended([q, none, none], past, [f"{w}.attention"], a, mask, state)

    def _attended(
        self, parts: list[str], past: list[str], outputs: list[str], a: Attention, mask: str | None, state: str
    ) -> str:
        seen, rule = self._visibility(a, mask)
        if a.cache == "int8":
            seen += [""] * (3 - len(seen)) + self._steps(state, (1, a.kv_heads, 1, a.head_dim))
            rule |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        turned = bool(a.norm_after or a.second_rope)  # by `_turned_apart`
        rows = ["", ""] if turned else [self._rope(a.rope, part) for part in (0, 1)]
        out, *_ = self.graph.nodes(
            "GroupQueryAttention",
            *parts,
            *past,
            self._last32,
            self._total32,
            *rows,
            *seen,
            outputs=outputs,
            domain=MICROSOFT,
            num_heads=a.heads,
            kv_num_heads=a.kv_heads,
            do_rotary=int(not turned),
            **rule,
            **optional_attributes(a),
        )
        return out

    def last(self, x: Value) -> str:
        """Right-padded rows end before the last position: gather by length, not by shape."""
        g = self.graph
        offset = g.node("Sub", self._last, self._past)
        rows = self._rows_up_to(g.node("Unsqueeze", offset, g.constant([1])))
        return self._gather_rows(x, g.node("Min", rows, g.node("Sub", self._new, g.constant([1]))))

    def _rows_up_to(self, last: str) -> str:
        """(B, 1) to (B, num_logits_to_keep): the rows that end with `last`."""
        g = self.graph
        before = g.node("Range", g.node("Sub", g.constant(1), self._kept), g.constant(1), g.constant(1))
        return g.node("Max", g.node("Add", last, before), g.constant([0]))

    def _gather_rows(self, x: Value, rows: str) -> str:
        g = self.graph
        return g.node("GatherND", self.value(x), g.node("Unsqueeze", rows, g.constant([2])), batch_dims=1)
