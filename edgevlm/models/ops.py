"""The operations that architectures are written in, on two levels. A backend plays them: eager computes, others emit.

Primitives are what a backend has (`models/primitives.py`); macros are written here with primitives, and a backend may
replace one by its fused kernel.
"""

from __future__ import annotations

from collections.abc import Callable

from edgevlm.models.primitives import Primitives, Weights, X
from edgevlm.models.spec import BARE, Attention, DeltaRule, Mlp, ShortConv

__all__ = ["Ops", "Weights", "X"]


class Ops(Primitives):
    """All operations."""

    def attention(self, x: X, w: str, a: Attention, width: int, state: str | None, mask: str | None) -> X:
        """(B, S, D) to (B, S, D) by the maps w.q, w.k, w.v and w.o; state: where keys and values grow, or None."""
        q, k, v = self._qkv(x, w, a, state)
        out = self.named(f"{w}.attention", self.merge(self.attend(q, k, v, a, mask)))
        return self.maps(self._gated(out, x, w, a), (f"{w}.o", width), bias=a.out_bias, clipped=a.clipped)[0]

    def attend_beside(self, q: X, k: X, v: X, name: str, a: Attention) -> X:
        """`attend` without a mask, of heads side by side: (B, S, heads * d) over (B, T, kv heads * d)."""
        q = self.heads(q, a.heads, a.head_dim)
        k, v = (self.heads(part, a.kv_heads, a.head_dim) for part in (k, v))
        return self.named(name, self.merge(self.attend(q, k, v, a, None)))

    def maps(self, x: X, *maps: tuple[str, int], bias: bool, clipped: bool) -> list[X]:
        """`linear`; clipped: each map by itself, with its input and its output within its own bounds."""
        if not clipped:
            return self.linear(x, *maps, bias=bias)
        found = []
        for name, rows in maps:
            low, high, least, most = (
                self.bound(f"{name}.{side}") for side in ("input_min", "input_max", "output_min", "output_max")
            )
            out = self.linear(self.clip(x, low, high), (name, rows), bias=bias)[0]
            found.append(self.clip(out, least, most))
        return found

    def _gated(self, out: X, x: X, w: str, a: Attention) -> X:
        """What an attention to x gives, times the gate that x gives, where there is one."""
        if a.gated is None:
            return out
        rows = a.heads * (a.head_dim if a.gated == "values" else 1)
        gate = self.act(self.linear(x, (f"{w}.o_gate", rows))[0], "sigmoid")
        return self.mul(out, gate) if a.gated == "values" else self.mul_heads(out, gate, a.heads, a.head_dim)

    def window_attention(self, x: X, w: str, a: Attention, width: int, size: int, mask: str | None) -> X:
        """As `attention`, inside groups of `size` positions."""
        q, k, v = (self.windows(part, size) for part in self._qkv(x, w, a, None))
        out = self.merge(self.unwindow(self.attend(q, k, v, a, mask)))
        out = self.named(f"{w}.attention", out)
        return self.maps(out, (f"{w}.o", width), bias=a.out_bias, clipped=a.clipped)[0]

    def window_cross(self, x: X, y: X, w: str, a: Attention, width: int, sizes: tuple[int, int], count: int) -> X:
        """The first, second ... of `count` groups of positions of x attends to that of y. sizes: of their groups."""
        rows, kv_rows = a.heads * a.head_dim, a.kv_heads * a.head_dim
        q = self.linear(x, (f"{w}.q", rows), bias=a.bias)[0]
        k, v = self.linear(y, (f"{w}.k", kv_rows), (f"{w}.v", kv_rows), bias=a.bias)
        q = self.windows(self.heads(q, a.heads, a.head_dim), sizes[0])
        k, v = (self.windows(self.heads(part, a.kv_heads, a.head_dim), sizes[1]) for part in (k, v))
        out = self.named(f"{w}.attention", self.merge(self.unwindow(self.attend(q, k, v, a, None), count)))
        return self.linear(out, (f"{w}.o", width), bias=a.out_bias)[0]

    def _qkv(self, x: X, w: str, a: Attention, state: str | None) -> tuple[X, X, X]:
        rows, kv_rows = a.heads * a.head_dim, a.kv_heads * a.head_dim
        if a.reads in ("memory", "earlier"):
            q, held = self.linear(x, (f"{w}.q", rows), bias=a.bias)[0], self.held if a.reads == "memory" else self.grown
            return self._rotated(q, f"{w}.q_norm", a, a.heads), held(f"{state}.key"), held(f"{state}.value")
        maps = ((f"{w}.q", rows), (f"{w}.k", kv_rows), (f"{w}.v", kv_rows))
        q, k, v = self.maps(x, *maps, bias=a.bias, clipped=a.clipped)
        q, k = self._rotated(q, f"{w}.q_norm", a, a.heads), self._rotated(k, f"{w}.k_norm", a, a.kv_heads)
        v = self.heads(v, a.kv_heads, a.head_dim)
        v = self.norm_heads(v, f"{w}.v_norm", a.v_norm) if a.v_norm else v
        if state is None:
            return q, k, v
        if a.cache == "int8":
            k, v = (
                self.rounded(part, f"{w}.{side}_step", a.kv_heads, a.head_dim) for part, side in ((k, "k"), (v, "v"))
            )
        return q, self.append(f"{state}.key", k), self.append(f"{state}.value", v)

    def _rotated(self, x: X, norm: str, a: Attention, count: int) -> X:
        x = self.heads(x, count, a.head_dim)
        x = self.norm_heads(x, norm, a.qk_norm) if a.qk_norm and not a.norm_after else x
        x = self.rotate(x, a.rope, a.head_dim, a.second_rope) if a.rope else x
        return self.norm_heads(x, norm, a.qk_norm) if a.qk_norm and a.norm_after else x

    def short_conv(self, x: X, w: str, c: ShortConv, width: int, state: str) -> X:
        """LFM2's mixer: y = C * conv(B * x), each a linear map of the input."""
        held = f"{state}.conv"
        return self.gated_conv(x, w, width, lambda y: self.causal_conv(y, f"{w}.conv", width, c.kernel, held))

    def gated_conv(self, x: X, w: str, width: int, conv: Callable[[X], X]) -> X:
        """The same by any convolution."""
        b, gate, x = self.linear(x, (f"{w}.b", width), (f"{w}.c", width), (f"{w}.x", width))
        return self.linear(self.mul(gate, conv(self.mul(b, x))), (f"{w}.out", width))[0]

    def delta_rule(self, x: X, w: str, r: DeltaRule, width: int, state: str) -> X:
        """Gated DeltaNet: how much a head forgets and learns at a position is a map of the input, as is its gate."""
        values, heads = r.value_heads * r.value_dim, r.value_heads
        mixed, gate, rate, step = self.linear(
            x, (f"{w}.qkv", r.channels), (f"{w}.z", values), (f"{w}.rate", heads), (f"{w}.step", heads)
        )
        mixed = self.act(self.causal_conv(mixed, f"{w}.conv", r.channels, r.kernel, f"{state}.conv"), "silu")
        step = self.act(self.add(step, self.vector(f"{w}.step_bias", heads)), "softplus")
        decay = self.mul(step, self.vector(f"{w}.decay", heads))
        out = self.correct(mixed, decay, self.act(rate, "sigmoid"), r, f"{state}.delta")
        out = self.merge(self.norm_heads(out, f"{w}.delta_norm", r.norm))
        return self.linear(self.mul(out, self.act(gate, "silu")), (f"{w}.out", width))[0]

    def mlp(self, x: X, w: str, m: Mlp, width: int) -> X:
        """Gated: w.gate, w.up and w.down; otherwise w.fc1 and w.fc2."""
        if m.gated:
            gate, up = self.maps(x, (f"{w}.gate", m.size), (f"{w}.up", m.size), bias=m.bias, clipped=m.clipped)
            gate = gate if m.cutoff is None else self.above(gate, f"{w}.gate", m.cutoff, m.size)
            h = self.mul(self.act(gate, m.act), up)
            return self.maps(h, (f"{w}.down", width), bias=m.bias, clipped=m.clipped)[0]
        h = self.act(self.maps(x, (f"{w}.fc1", m.size), bias=m.bias, clipped=m.clipped)[0], m.act)
        return self.maps(h, (f"{w}.fc2", width), bias=m.bias, clipped=m.clipped)[0]

    def above(self, x: X, w: str, cutoff: float, width: int) -> X:
        """How far each channel's value is above their mean and that many of their standard deviations; 0 if it is not.

        The statistical top-k of arXiv 2506.06644, of which Gemma 3n has the form.
        """
        off = self.add(x, self.mul(self.mean_channels(x), -1.0))
        least = self.mul(self.root_mean_square(off, f"{w}_spread", width), -cutoff)
        return self.act(self.add(off, least), "relu")

    def root_mean_square(self, x: X, w: str, width: int) -> X:
        """(B, S, D) to (B, S, 1): over channels. No square of a value is formed, which float16 might not hold."""
        share = self.mul(self.norm(x, w, BARE), width**-0.5)
        return self.mul(self.mean_channels(self.mul(x, share)), width**0.5)
