"""The MIL backend: `edgevlm.models` played on coremltools' builder.

`MilOps` is the `gpu` profile: (1, S, D) values, fused attention, flexible lengths. `AneOps` in ane_ops.py overrides
parts of it for the Neural Engine. Values that the reference also names carry its name, so that a package can be
compared with it operation by operation.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from edgevlm.bundle.qtensor import PALETTES
from edgevlm.errors import EdgeVLMError
from edgevlm.export.coreml_.place_ops import PlaceOps
from edgevlm.export.coreml_.state_ops import mil_name
from edgevlm.models.blocks import rope_inputs
from edgevlm.models.ops import X
from edgevlm.models.spec import Attention, Conv, Norm
from edgevlm.models.trace import linear_name

LEAST = 2.0**-24  # of fp16's numbers that are more than 0
_GELU = {"gelu": "EXACT", "gelu_tanh": "TANH_APPROXIMATION", "quick_gelu": "SIGMOID_APPROXIMATION"}


class MilOps(PlaceOps):
    """Emits one function of the `gpu` profile. X is a pymil Var: activations are (1, S, D), heads (1, H, S, d)."""

    backend = "The CoreML target"
    plain_attention = False  # matmul and softmax instead of the fused operation

    # The function's interface

    def output(self, x: X, name: str) -> X:
        """A value as the interface promises it: (1, S, D) under `name`."""
        return self.mb.identity(x=x, name=name)

    def input(self, name: str) -> X:
        return self.inputs[name] if name in self.inputs else self._lacks(name)

    def named(self, name: str, x: X) -> X:
        x.name = x.op.name = mil_name(name)
        return x

    # Weights

    def _matrix(self, names: tuple[str, ...], op: str, rows: slice | None = None) -> X:
        packed = self.store.matrix(names, op, rows)
        data = self._shape_weight(packed["data"])
        if packed["kind"] == "fp16":
            return self._const(data, op)
        if packed["kind"] in PALETTES:
            bits = PALETTES[packed["kind"]]
            codes = data.astype(getattr(self.mil.types, f"np_uint{bits}_dtype"))
            palette = packed["palette"].reshape(-1, *(1,) * (data.ndim - 1), 1 << bits, 1)
            return self._share(self.mb.constexpr_lut_to_dense(indices=codes, lut=palette, name=op), "indices", "lut")
        if packed["kind"] == "int4":
            data = data.astype(self.mil.types.np_int4_dtype)
        scale = self._shape_weight(packed["scale"])
        return self._share(self.mb.constexpr_blockwise_shift_scale(data=data, scale=scale, name=op), "data", "scale")

    def _share(self, weight: X, *inputs: str) -> X:
        """Functions of one package share what carries the same id."""
        for name in inputs:
            getattr(weight.op, name).op.weight_id = f"{weight.name}.{name}"
        return weight

    def _shape_weight(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array

    def vector(self, name: str, size: int) -> X:
        return self._const(self._shape_vector(self.store.vector(name)[None]), mil_name(name))

    # Linear maps

    def linear(self, x: X, *maps: tuple[str, int], bias: bool = False) -> list[X]:
        out = self._product(x, maps, bias)
        sizes = [rows for _, rows in maps]
        return list(self.mb.split(x=out, split_sizes=sizes, axis=self.channel_axis)) if len(maps) > 1 else [out]

    def _product(self, x: X, maps: tuple[tuple[str, int], ...], bias: bool) -> X:
        """The results of all maps next to each other."""
        names = tuple(name for name, _ in maps)
        op = mil_name(linear_name(*names))
        inputs = {"weight": self._matrix(names, f"{op}_weight")}
        if bias:
            parts = [self.store.vector(f"{name}.bias") for name in names]
            inputs["bias"] = self._const(np.concatenate(parts), f"{op}_bias")
        return self._multiply(x, op, inputs)

    def _multiply(self, x: X, op: str, inputs: dict[str, X]) -> X:
        return self.mb.linear(x=x, name=op, **inputs)

    def patch_embed(self, pixels: X, name: str, width: int, patch: int, bias: bool = True) -> X:
        x = self._convolve(pixels, name, patch, bias)
        x = self.mb.reshape(x=x, shape=[1, width, x.shape[2] * x.shape[3]])
        return self.mb.transpose(x=x, perm=[0, 2, 1], name=mil_name(name))

    def _convolve(self, pixels: X, name: str, patch: int, bias: bool) -> X:
        op = mil_name(name)
        inputs = {"weight": self._const(self.store.vector(f"{name}.weight"), f"{op}_weight")}
        if bias:
            inputs["bias"] = self._const(self.store.vector(f"{name}.bias"), f"{op}_bias")
        return self.mb.conv(x=pixels, strides=[patch, patch], pad_type="valid", **inputs)

    def flatten(self, pixels: X) -> X:
        x = self.mb.reshape(x=pixels, shape=[1, pixels.shape[1], pixels.shape[2] * pixels.shape[3]])
        return self.mb.transpose(x=x, perm=[0, 2, 1])

    def _cells(self, x: X, grid: tuple[int, int]) -> X:
        """Positions on a grid, (1, D, rows, columns)."""
        x = self.mb.transpose(x=x, perm=[0, 2, 1])
        return self.mb.reshape(x=x, shape=[1, x.shape[1], *grid])

    def conv2d(self, x: X, name: str, grid: tuple[int, int], c: Conv) -> X:
        op, parts = mil_name(name), ("weight", "bias")[: 1 + c.bias]
        inputs = {part: self._const(self.store.vector(f"{name}.{part}"), f"{op}_{part}") for part in parts}
        out = self.mb.conv(
            x=self._cells(x, grid), strides=[c.stride] * 2, pad_type="custom", pad=[*c.zeros] * 2, groups=c.groups,
            **inputs,
        )  # fmt: skip
        return self.flatten(out)

    def conv_at(self, x: X, name: str, width: int, kernel: int, places: str) -> X:
        """A tap at a time: a position of zeros stands before all others."""
        mb, op, nothing = self.mb, mil_name(name), self._shape_vector(np.zeros((1, width), np.float16))
        padded = mb.concat(values=[self._const(nothing, f"{op}_nothing"), x], axis=self.position_axis)
        parts: list[X] = []
        for number, tap in enumerate(self.store.vector(f"{name}.weight").T):
            if (key := f"{places}_{number}") not in self._shared:
                column = self._part(self.inputs[places], 1, number, number + 1)
                self._shared[key] = mb.squeeze(x=column, axes=[1])
            found = mb.gather(x=padded, indices=self._shared[key], axis=self.position_axis)
            parts.append(mb.mul(x=found, y=self._const(self._shape_vector(tap[None]), f"{op}_{number}")))
        return reduce(lambda total, part: mb.add(x=total, y=part), parts)

    def mean(self, x: X) -> X:
        return self.mb.reduce_mean(x=x, axes=[self.position_axis], keep_dims=True)

    def mean_channels(self, x: X) -> X:
        return self.mb.reduce_mean(x=x, axes=[self.channel_axis], keep_dims=True)

    def plain_linear(self, x: X, name: str, width: int, bias: bool = False) -> X:
        op = self._own_name(name)
        inputs = {"weight": self._const(self._shape_weight(self.store.vector(f"{name}.weight")), f"{op}_weight")}
        if bias:
            inputs["bias"] = self._const(self.store.vector(f"{name}.bias"), f"{op}_bias")
        return self._multiply(x, op, inputs)

    def embed(self, ids: X, name: str, rows: int, width: int) -> NoReturn:
        raise EdgeVLMError("CoreML programs take embeddings, not ids: the table is a file of its own.")

    def add_input(self, x: X, name: str) -> X:
        return self.mb.add(x=x, y=self.load(self.inputs[name]))

    def ask(self, k: X, v: X, name: str, count: int, a: Attention, mask: str) -> X:
        rows = self.store.vector(name).reshape(count, a.heads, a.head_dim).swapaxes(0, 1)[None]
        k, v = (self.heads(part, a.kv_heads, a.head_dim) for part in (k, v))
        return self.merge(self.attend(self._const(np.ascontiguousarray(rows), mil_name(name)), k, v, a, mask))

    def beside(self, parts: list[X]) -> X:
        return self.mb.concat(values=parts, axis=self.channel_axis)

    def split(self, x: X, *widths: int) -> list[X]:
        return list(self.mb.split(x=x, split_sizes=list(widths), axis=self.channel_axis))

    def bound(self, name: str) -> X:
        """fp16 holds no value beyond its own bounds."""
        return self._const(self._shape_vector(self.store.bound(name)[None]), mil_name(name))

    def clip(self, x: X, low: X, high: X) -> X:
        return self.mb.minimum(x=self.mb.maximum(x=x, y=low), y=high)

    def last(self, x: X) -> X:
        return self.mb.slice_by_index(x=x, begin=[0, -1, 0], end=[0, 0, 0], end_mask=[True] * 3)

    def take(self, x: X, index: str) -> X:
        return self.mb.gather(x=x, indices=self.inputs[index], axis=self.position_axis)

    def group(self, x: X, count: int, width: int) -> X:
        return self.mb.reshape(x=x, shape=[1, -1, count * width])

    def pixel_shuffle(self, x: X, grid: tuple[int, int], scale: int, width: int) -> X:
        """Rank 4 throughout: neighbours within a row of patches are already next to each other."""
        rows, columns = (side // scale for side in grid)
        cells = self.mb.reshape(x=x, shape=[rows, scale, columns, scale * width])
        cells = self.mb.transpose(x=cells, perm=[0, 2, 1, 3])
        return self.mb.reshape(x=cells, shape=[1, rows * columns, width * scale**2])

    def apart(self, x: X, count: int, width: int) -> X:
        return self.mb.reshape(x=x, shape=[1, -1, width])

    def pixel_unshuffle(self, x: X, grid: tuple[int, int], scale: int, width: int) -> X:
        rows, columns = (side // scale for side in grid)
        cells = self.mb.reshape(x=x, shape=[rows, columns, scale, scale * width])
        cells = self.mb.transpose(x=cells, perm=[0, 2, 1, 3])
        return self.mb.reshape(x=cells, shape=[1, rows * columns * scale**2, width])

    def mean_pool(self, x: X, grid: tuple[int, int], scale: int, width: int) -> X:
        rows, columns = (side // scale for side in grid)
        mb, cells = self.mb, self.mb.reshape(x=x, shape=[rows, scale, columns, scale * width])
        cells = mb.reshape(x=mb.reduce_mean(x=cells, axes=[1]), shape=[1, rows * columns, scale, width])
        return mb.reduce_mean(x=cells, axes=[2])

    # Element by element

    def norm(self, x: X, name: str, spec: Norm) -> X:
        return self._norm(x, name, spec, self.channel_axis)

    def _norm(self, x: X, name: str, spec: Norm, axis: int) -> X:
        """An RMS norm is layer_norm of [x, -x], with mean 0 and variance mean(x^2): one kernel that cannot overflow.

        A hand-written x * rsqrt(mean(x^2)) returns zeros in fp16 as soon as |x| reaches 256. The form is Anemll's.
        """
        op, mb, epsilon = self._own_name(name), self.mb, np.float16(max(spec.eps, LEAST))
        gain = self.store.vector(f"{name}.weight") if spec.weight else np.ones(x.shape[axis], np.float16)
        if spec.kind == "layer":
            gamma = self._const(gain, f"{op}_gamma")
            beta = self._const(self.store.vector(f"{name}.bias"), f"{op}_beta")
            return mb.layer_norm(x=x, axes=[axis], gamma=gamma, beta=beta, epsilon=epsilon, name=op)
        both = mb.concat(values=[x, mb.mul(x=x, y=np.float16(-1))], axis=axis)
        gamma = self._const(np.concatenate([gain, gain]), f"{op}_gamma")
        normed = mb.layer_norm(x=both, axes=[axis], gamma=gamma, epsilon=epsilon)
        begin, end = [0] * x.rank, [0] * x.rank
        end[axis] = len(gain)
        mask = [other != axis % x.rank for other in range(x.rank)]
        return mb.slice_by_index(x=normed, begin=begin, end=end, end_mask=mask, name=op)

    def norm_heads(self, x: X, name: str, spec: Norm) -> X:
        return self._norm(x, name, spec, 3)

    def act(self, x: X, kind: str) -> X:
        name = f"{x.name}_{kind}"
        if kind in _GELU:
            return self.mb.gelu(x=x, mode=_GELU[kind], name=name)
        if kind == "softmax":
            return self.mb.softmax(x=x, axis=self.channel_axis, name=name)
        return getattr(self.mb, kind)(x=x, name=name)

    def add(self, x: X, y: X) -> X:
        return self.mb.add(x=x, y=y, name=f"{y.name}_residual")

    def mul(self, x: X, y: X | float) -> X:
        return self.mb.mul(x=x, y=np.float16(y) if isinstance(y, float) else y)

    def mul_heads(self, x: X, y: X, count: int, size: int) -> X:
        mb, heads = self.mb, self.mb.reshape(x=x, shape=[1, -1, count, size])
        return mb.reshape(x=mb.mul(x=heads, y=mb.expand_dims(x=y, axes=[3])), shape=[1, -1, count * size])

    # Attention

    def heads(self, x: X, count: int, size: int) -> X:
        return self.mb.transpose(x=self.mb.reshape(x=x, shape=[1, -1, count, size]), perm=[0, 2, 1, 3])

    def merge(self, x: X) -> X:
        return self.mb.reshape(x=self.mb.transpose(x=x, perm=[0, 2, 1, 3]), shape=[1, -1, x.shape[1] * x.shape[3]])

    def windows(self, x: X, size: int) -> X:
        _, heads, _, width = x.shape
        return self.mb.transpose(x=self.mb.reshape(x=x, shape=[heads, -1, size, width]), perm=[1, 0, 2, 3])

    def unwindow(self, x: X, count: int | None = None) -> X:
        _, heads, _, width = x.shape
        return self.mb.reshape(x=self.mb.transpose(x=x, perm=[1, 0, 2, 3]), shape=[1, heads, -1, width])

    def rotate(self, x: X, rope: str, size: int, second: str | None = None) -> X:
        """The rows hold both halves: x * [cos, cos] + swapped halves of x * [-sin, sin]."""
        mb, (cos, sin) = self.mb, (self.inputs[name] for name in rope_inputs(rope))
        if second is not None:
            both = zip((cos, sin), (self.inputs[name] for name in rope_inputs(second)), strict=True)
            halves = [[mb.split(x=rows, num_splits=2, axis=3)[i] for i, rows in enumerate(pair)] for pair in both]
            cos, sin = (mb.concat(values=pair, axis=3) for pair in halves)
        turning, whole = cos.shape[-1], x.shape[-1]
        rest: list[X] = []
        if turning < whole:
            x, *rest = mb.split(x=x, split_sizes=[turning, whole - turning], axis=3)
        first, last = mb.split(x=x, num_splits=2, axis=3)
        swapped = mb.concat(values=[last, first], axis=3)
        rotated = mb.add(x=mb.mul(x=x, y=cos), y=mb.mul(x=swapped, y=sin))
        return mb.concat(values=[rotated, *rest], axis=3) if rest else rotated

    def _qkv(self, x: X, w: str, a: Attention, state: str | None) -> tuple[X, X, X]:
        """One product for all three, one rotation for queries and keys."""
        if a.reads == "memory":
            self._lacks("attention to a memory")
        if a.reads == "earlier" or a.clipped:
            return super()._qkv(x, w, a, state)
        h, kv, size, mb = a.heads, a.kv_heads, a.head_dim, self.mb
        maps = ((f"{w}.q", h * size), (f"{w}.k", kv * size), (f"{w}.v", kv * size))
        all_heads = self.heads(self._product(x, maps, a.bias), h + 2 * kv, size)
        if a.qk_norm or not a.rope:
            q, k, v = mb.split(x=all_heads, split_sizes=[h, kv, kv], axis=1)
            q, k = (self._turned(part, f"{w}.{n}_norm", a) for part, n in ((q, "q"), (k, "k")))
        else:
            qk, v = mb.split(x=all_heads, split_sizes=[h + kv, kv], axis=1)
            q, k = mb.split(x=self.rotate(qk, a.rope, size, a.second_rope), split_sizes=[h, kv], axis=1)
        v = self._norm(v, f"{w}.v_norm", a.v_norm, 3) if a.v_norm else v
        return (q, k, v) if state is None else (q, *self._grow(state, k, v))

    def _turned(self, x: X, norm: str, a: Attention) -> X:
        """Heads (1, H, S, d) normed and rotated, in their order."""
        x = self._norm(x, norm, a.qk_norm, 3) if a.qk_norm and not a.norm_after else x
        x = self.rotate(x, a.rope, a.head_dim, a.second_rope) if a.rope else x
        return self._norm(x, norm, a.qk_norm, 3) if a.qk_norm and a.norm_after else x

    def attend(self, q: X, k: X, v: X, a: Attention, mask: str | None) -> X:
        """Query heads that share a key head become more query rows, so that keys and values are never repeated."""
        mb, grouped = self.mb, a.heads > a.kv_heads
        seen = {} if mask is None else {"attn_mask": self._mask(mask, a)}
        q_rows = mb.reshape(x=q, shape=[1, a.kv_heads, -1, a.head_dim]) if grouped else q
        if a.softcap is not None or self.plain_attention:
            out = self._plain(q_rows, k, v, a, seen.get("attn_mask"))
        else:
            usual = a.head_dim**-0.5
            if a.scale is not None and a.scale != usual:
                q_rows = mb.mul(x=q_rows, y=np.float16(a.scale / usual))
            out = mb.scaled_dot_product_attention(query=q_rows, key=k, value=v, **seen)
        # What is read from a state has sizes that MIL takes for unknown: say them again.
        known = isinstance(out.shape[-1], int) and not grouped
        return out if known else mb.reshape(x=out, shape=[1, a.heads, -1, a.head_dim])

    def _plain(self, q: X, k: X, v: X, a: Attention, mask: X | None) -> X:
        mb = self.mb
        q = mb.mul(x=q, y=np.float16(a.head_dim**-0.5 if a.scale is None else a.scale))
        scores = mb.matmul(x=q, y=k, transpose_y=True)
        if a.softcap is not None:
            capped = mb.tanh(x=mb.mul(x=scores, y=np.float16(1 / a.softcap)))
            scores = mb.mul(x=capped, y=np.float16(a.softcap))
        scores = scores if mask is None else mb.add(x=scores, y=mask)
        return mb.matmul(x=mb.softmax(x=scores, axis=-1), y=v)

    def _mask(self, name: str, a: Attention) -> X:
        """The input `name`, repeated where query heads became rows; one for all layers that need the same."""
        group = a.heads // a.kv_heads
        if group == 1 or self.inputs[name].shape[2] == 1:  # a mask with one row is every row's
            return self.inputs[name]
        key = f"{name}_of_{group}_heads"
        if key not in self._shared:
            self._shared[key] = self._repeat(self.inputs[name], group, key)
        return self._shared[key]

    def _repeat(self, mask: X, group: int, name: str) -> X:
        return self.mb.tile(x=mask, reps=[1, 1, group, 1], name=name)
