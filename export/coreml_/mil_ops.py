"""The MIL backend of the macro-operations: `edgevlm.models` played on coremltools' builder.

`MilOps` is the `gpu` profile: (1, S, D) values, fused attention, flexible lengths. `AneOps` in ane_ops.py
overrides what the Neural Engine wants otherwise. Values that the reference also names carry its name
(`value_name`), so that a package can be compared with it operation by operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.bundle.qtensor import PALETTES, QTensor
from edgevlm.errors import EdgeVLMError
from edgevlm.export.coreml_.package import Mil
from edgevlm.models.ops import Weights, X
from edgevlm.models.spec import Decoder
from edgevlm.runtimes.mil.trace import value_name

F16 = npt.NDArray[np.float16]
FP16_MAX = 65504.0


@dataclass
class Store:
    """Weights on their way into one package: read once, shared by its functions, and where each went.

    `places` maps a canonical name to the operation that holds it and its rows there, for the manifest.
    """

    weights: Weights
    quantized: Callable[[str], QTensor]
    arrays: dict[str, dict[str, Any]] = field(default_factory=dict)
    places: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def matrix(self, names: tuple[str, ...], op: str, rows: slice | None = None) -> dict[str, Any]:
        """The matrices of `names` on top of each other, or the `rows` of one: "kind", "data", "scale" or "palette"."""
        if op not in self.arrays:
            tensors = [self.quantized(f"{name}.weight") for name in names]
            if len({tensor.kind in ("fp32", "fp16") or tensor.kind for tensor in tensors}) > 1:
                raise EdgeVLMError(
                    f"{', '.join(names)} are one CoreML operation and need one form: quantize them alike."
                )
            take = rows or slice(None)
            packed = self.arrays[op] = _pack(tensors, names, take)
            start = 0
            for name, tensor in zip(names, tensors, strict=True):
                count = len(range(*take.indices(tensor.codes.shape[0])))
                place = {"op": op, "rows": [start, start + count], "kind": packed["kind"]}
                self.places.setdefault(f"{name}.weight", []).append(place)
                start += count
        return self.arrays[op]

    def vector(self, name: str) -> F16:
        return half(self.weights.read(name), name)


def half(values: npt.NDArray[Any], name: str) -> F16:
    """fp16 for a program that computes in fp16; EdgeVLMError where a value does not fit."""
    if values.size and not float(np.abs(values).max()) <= FP16_MAX:
        raise EdgeVLMError(
            f"The weight '{name}' reaches {float(np.abs(values).max()):.3g}, more than CoreML's fp16 holds "
            f"({FP16_MAX:g}): use the ONNX target for this model."
        )
    return values.astype(np.float16)


def _pack(tensors: list[QTensor], names: tuple[str, ...], rows: slice) -> dict[str, Any]:
    if tensors[0].palette is not None:
        assert rows == slice(None), "heads, which may be cut, hold no palettes"
        return {"kind": tensors[0].kind, "data": np.concatenate([t.codes for t in tensors]), "palette": _stack(tensors)}
    if tensors[0].scale is None:
        halves = [half(tensor.codes, name)[rows] for tensor, name in zip(tensors, names, strict=True)]
        return {"kind": "fp16", "data": np.concatenate(halves)}
    scales = [tensor.scale[rows] for tensor in tensors if tensor.scale is not None]
    codes = np.concatenate([tensor.codes[rows].astype(np.int8, copy=False) for tensor in tensors])
    return {"kind": tensors[0].kind, "data": codes, "scale": np.concatenate(scales)}


def _stack(tensors: list[QTensor]) -> F16:
    """The palettes of matrices on top of each other, repeated where one's serve more rows than another's."""
    palettes = [(tensor.palette, len(tensor.codes)) for tensor in tensors if tensor.palette is not None]
    group = math.gcd(*(rows // len(palette) for palette, rows in palettes))
    return np.concatenate([np.repeat(palette, rows // len(palette) // group, axis=0) for palette, rows in palettes])


class MilOps:
    """Emits one function of the `gpu` profile. X is a pymil Var."""

    channel_axis = -1

    def __init__(self, mil: Mil, store: Store, decoder: Decoder | None = None) -> None:
        self.mil, self.mb, self.store, self.decoder = mil, mil.mb, store, decoder
        self._attentions = 0

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

    def _const(self, value: npt.NDArray[Any], name: str) -> X:
        const = self.mb.const(val=value, name=name)
        const.op.weight_id = name
        return const

    def _bias(self, names: tuple[str, ...], op: str, sizes: list[int]) -> X | None:
        """The biases of packed maps, zeros for a map that has none; None when no map has one."""
        weights = self.store.weights
        if not any(f"{name}.bias" in weights for name in names):
            return None
        parts = [
            self.store.vector(f"{name}.bias") if f"{name}.bias" in weights else np.zeros(size, np.float16)
            for name, size in zip(names, sizes, strict=True)
        ]
        return self._const(np.concatenate(parts), f"{op}_bias")

    # Operations

    def patch_embed(self, pixels: X, name: str, patch_size: int) -> X:
        op = mil_name(name)
        x = self._convolve(pixels, name, op, patch_size)
        x = self.mb.reshape(x=x, shape=[1, x.shape[1], x.shape[2] * x.shape[3]])
        return self.mb.transpose(x=x, perm=[0, 2, 1], name=op)

    def _convolve(self, pixels: X, name: str, op: str, patch_size: int) -> X:
        inputs = {"weight": self._const(self.store.vector(f"{name}.weight"), f"{op}_weight")}
        if f"{name}.bias" in self.store.weights:
            inputs["bias"] = self._const(self.store.vector(f"{name}.bias"), f"{op}_bias")
        strides = [patch_size, patch_size]
        return self.mb.conv(x=pixels, strides=strides, pad_type="valid", **inputs)

    def add_table(self, x: X, name: str) -> X:
        table = self._const(self.store.vector(name)[None], f"{mil_name(name)}_table")
        return self.mb.add(x=x, y=table, name=mil_name(name))

    def add(self, x: X, y: X) -> X:
        return self.mb.add(x=x, y=y, name=f"{y.name}_residual")

    def layer_norm(self, x: X, name: str, eps: float) -> X:
        inputs = {"gamma": self._const(self.store.vector(f"{name}.weight"), f"{mil_name(name)}_gamma")}
        if f"{name}.bias" in self.store.weights:
            inputs["beta"] = self._const(self.store.vector(f"{name}.bias"), f"{mil_name(name)}_beta")
        inputs["epsilon"] = np.float16(eps)
        return self.mb.layer_norm(x=x, axes=[self.channel_axis], name=mil_name(name), **inputs)

    def rms_norm(self, x: X, name: str, eps: float) -> X:
        """layer_norm of [x, -x], whose mean is 0 and whose variance is mean(x^2): one kernel that cannot
        overflow.

        A hand-written x * rsqrt(mean(x^2)) returns zeros in fp16 as soon as |x| reaches 256. The form is
        Anemll's.
        """
        axis, op = self.channel_axis, mil_name(name)
        size = x.shape[axis]
        gain = self.store.vector(f"{name}.weight")
        both = self.mb.concat(values=[x, self.mb.mul(x=x, y=np.float16(-1))], axis=axis)
        gamma = self._const(np.concatenate([gain, gain]), f"{op}_gamma")
        normed = self.mb.layer_norm(x=both, axes=[axis], gamma=gamma, epsilon=np.float16(eps))
        return self._first(normed, size, op)

    def _first(self, x: X, size: int, name: str) -> X:
        """The first `size` channels."""
        begin, end = [0] * x.rank, [0] * x.rank
        end[self.channel_axis] = size
        mask = [axis != self.channel_axis % x.rank for axis in range(x.rank)]
        return self.mb.slice_by_index(x=x, begin=begin, end=end, end_mask=mask, name=name)

    def add_rms_norm(self, x: X, delta: X, name: str, eps: float) -> tuple[X, X]:
        total = self.mb.add(x=x, y=delta, name=f"{delta.name}_residual")
        return total, self.rms_norm(total, name, eps)

    def linear(self, x: X, *names: str) -> X:
        op = mil_name(value_name("linear", *names))
        return self.mb.linear(x=x, name=op, **self._map(names, op))

    def _map(self, names: tuple[str, ...], op: str) -> dict[str, X]:
        """The weight and bias arguments of packed linear maps."""
        inputs = {"weight": self._matrix(names, f"{op}_weight")}
        spans = [self.store.places[f"{name}.weight"][-1]["rows"] for name in names]
        if (bias := self._bias(names, op, [stop - start for start, stop in spans])) is not None:
            inputs["bias"] = bias
        return inputs

    def gelu(self, x: X, kind: str) -> X:
        mode = "TANH_APPROXIMATION" if kind == "gelu_tanh" else "EXACT"
        return self.mb.gelu(x=x, mode=mode, name=f"{x.name}_gelu")

    def swiglu(self, x: X) -> X:
        gate, up = self.mb.split(x=x, num_splits=2, axis=self.channel_axis)
        return self.mb.mul(x=self.mb.silu(x=gate), y=up, name=f"{x.name}_swiglu")

    def attention(self, qkv: X, num_heads: int) -> X:
        _, patches, width = qkv.shape
        size = width // 3 // num_heads
        heads = self.mb.reshape(x=qkv, shape=[1, patches, 3 * num_heads, size])
        q, k, v = self.mb.split(x=self.mb.transpose(x=heads, perm=[0, 2, 1, 3]), num_splits=3, axis=1)
        out = self.mb.scaled_dot_product_attention(query=q, key=k, value=v)
        merged = self.mb.transpose(x=out, perm=[0, 2, 1, 3])
        return self.mb.reshape(x=merged, shape=[1, patches, width // 3], name=self._attention_name())

    def _attention_name(self) -> str:
        self._attentions += 1
        return mil_name(value_name("attention", self._attentions - 1))

    def start_decoder(self, inputs: dict[str, X]) -> None:
        """What all layers share: where a call's rows go, how far the cache reaches, the mask for query
        groups."""
        assert self.decoder is not None
        self.inputs = inputs
        group = self.decoder.num_heads // self.decoder.num_kv_heads
        self.mask = self.mb.tile(x=inputs["mask"], reps=[1, 1, group, 1], name="mask_of_group")
        shape = self.mb.shape(x=inputs["mask"])
        self.end = self.mb.slice_by_index(x=shape, begin=[3], end=[4], name="end")

    def cached_attention(self, qkv: X, layer: int) -> X:
        """Query heads that share a key head become more query rows, so that keys and values are never
        repeated."""
        assert self.decoder is not None
        spec, mb = self.decoder, self.mb
        kv, size = spec.num_kv_heads, spec.head_dim
        heads = mb.reshape(x=qkv, shape=[1, -1, spec.num_heads + 2 * kv, size])
        heads = mb.transpose(x=heads, perm=[0, 2, 1, 3])
        qk, v = mb.split(x=heads, split_sizes=[spec.num_heads + kv, kv], axis=1)
        first, second = mb.split(x=qk, num_splits=2, axis=3)
        swapped = mb.concat(values=[second, first], axis=3)
        turned = mb.add(x=mb.mul(x=qk, y=self.inputs["cos"]), y=mb.mul(x=swapped, y=self.inputs["sin"]))
        q, k = mb.split(x=turned, split_sizes=[spec.num_heads, kv], axis=1)
        q = mb.reshape(x=q, shape=[1, kv, -1, size])
        keys, values = self._append("key_cache", k, layer), self._append("value_cache", v, layer)
        out = mb.scaled_dot_product_attention(query=q, key=keys, value=values, attn_mask=self.mask)
        out = mb.reshape(x=out, shape=[1, spec.num_heads, -1, size])
        out = mb.transpose(x=out, perm=[0, 2, 1, 3])
        name = mil_name(value_name("cached_attention", layer))
        return mb.reshape(x=out, shape=[1, -1, spec.num_heads * size], name=name)

    def _append(self, state: str, rows: X, layer: int) -> X:
        """Write (1, kv heads, S, head size) to a layer's cache; what it then holds, (1, kv heads, end, head
        size)."""
        held, end = self._write(state, rows, layer)
        return self.mb.slice_by_index(x=held, begin=[layer, 0, 0, 0], end=end)

    def _write(self, state: str, rows: X, layer: int) -> tuple[X, X]:
        """The state with `rows` at `position` of layer `layer`, and the corner after the last written
        element."""
        assert self.decoder is not None
        mb, kv, size = self.mb, self.decoder.num_kv_heads, self.decoder.head_dim

        def corner(row: int, head: int, position: X, column: int) -> X:
            one = [np.array([n], np.int32) for n in (row, head, column)]
            return mb.concat(values=[one[0], one[1], position, one[2]], axis=0)

        begin = corner(layer, 0, self.inputs["position"], 0)
        end = corner(layer + 1, kv, self.end, size)
        old = mb.read_state(input=self.inputs[state])
        new = mb.slice_update(x=old, update=rows, begin=begin, end=end)
        return mb.coreml_update_state(state=self.inputs[state], value=new), end

    def pixel_shuffle(self, x: X, scale: int) -> X:
        """Rank 4 throughout: neighbours within a row of patches are already next to each other."""
        _, patches, width = x.shape
        side = math.isqrt(patches)
        grid = self.mb.reshape(x=x, shape=[side // scale, scale, side // scale, scale * width])
        grid = self.mb.transpose(x=grid, perm=[0, 2, 1, 3])
        return self.mb.reshape(x=grid, shape=[1, patches // scale**2, width * scale**2])

    def embed(self, ids: X, name: str) -> X:
        raise EdgeVLMError("CoreML programs take embeddings, not ids: the table is a file of its own.")

    def last_position(self, x: X) -> X:
        return self.mb.slice_by_index(x=x, begin=[0, -1, 0], end=[0, 0, 0], end_mask=[True] * 3)

    def finish(self, x: X, name: str) -> X:
        """The value as the interface promises it: (1, S, D) under `name`."""
        return self.mb.identity(x=x, name=name)


def mil_name(name: str) -> str:
    """MIL identifiers hold no dots."""
    return name.replace(".", "_")
