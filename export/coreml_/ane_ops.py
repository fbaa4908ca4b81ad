"""What the Neural Engine wants otherwise: (1, C, 1, S) values, 1x1 convolutions, plain matmul and softmax.

Layout after Apple's "Deploying Transformers on the Apple Neural Engine" (ml-ane-transformers); one rank-4
state for keys and values after Anemll. Nothing here was placed by a device: see docs/coreml.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.export.coreml_.mil_ops import MilOps, Store, mil_name
from edgevlm.export.coreml_.package import Mil
from edgevlm.models.ops import X
from edgevlm.models.spec import Decoder
from edgevlm.runtimes.mil.trace import value_name

HEADS = ("decoder.embed", "decoder.head")
MAX_DIM = 65536  # larger axes leave the Neural Engine (maderix/ANE #26)


class AneOps(MilOps):
    """Emits one function of the `ane` profile."""

    channel_axis = 1

    def __init__(self, mil: Mil, store: Store, decoder: Decoder | None = None, max_dim: int = MAX_DIM) -> None:
        super().__init__(mil, store, decoder)
        self.max_dim = max_dim

    def _shape_weight(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array[:, :, None, None]

    def start(self, x: X) -> X:
        """(1, S, D) to (1, D, 1, S)."""
        return self.mb.expand_dims(x=self.mb.transpose(x=x, perm=[0, 2, 1]), axes=[2])

    def patch_embed(self, pixels: X, name: str, patch_size: int) -> X:
        x = self._convolve(pixels, name, mil_name(name), patch_size)
        return self.mb.reshape(x=x, shape=[1, x.shape[1], 1, x.shape[2] * x.shape[3]], name=mil_name(name))

    def add_table(self, x: X, name: str) -> X:
        values = np.ascontiguousarray(self.store.vector(name).T)[None, :, None]
        return self.mb.add(x=x, y=self._const(values, f"{mil_name(name)}_table"), name=mil_name(name))

    def linear(self, x: X, *names: str) -> X:
        op = mil_name(value_name("linear", *names))
        if names[0] in HEADS and (parts := self._head_parts(names[0])):
            return [self._part(x, names[0], f"{op}_{i}", rows) for i, rows in enumerate(parts)]
        return self.mb.conv(x=x, strides=[1, 1], pad_type="valid", name=op, **self._map(names, op))

    def _head_parts(self, name: str) -> list[slice]:
        """Row ranges of a head that has more outputs than an axis may have; empty for one that fits."""
        assert self.decoder is not None
        total = self.decoder.vocab_size
        count = -(-total // self.max_dim)
        size = -(-total // count)
        return [slice(i * size, min(total, (i + 1) * size)) for i in range(count)] if count > 1 else []

    def _part(self, x: X, name: str, op: str, rows: slice) -> X:
        weight = self._matrix((name,), f"{op}_weight", rows)
        return self.mb.conv(x=x, weight=weight, strides=[1, 1], pad_type="valid", name=op)

    def attention(self, qkv: X, num_heads: int) -> X:
        _, width, _, patches = qkv.shape
        size = width // 3 // num_heads
        heads = self.mb.reshape(x=qkv, shape=[1, 3 * num_heads, size, patches])
        q, k, v = self.mb.split(x=heads, num_splits=3, axis=1)
        q = self.mb.mul(x=q, y=np.float16(size**-0.5))
        name = self._attention_name()
        scores = self.mb.matmul(x=q, y=k, transpose_x=True, name=f"{name}_scores")
        shares = self.mb.softmax(x=scores, axis=-1, name=f"{name}_shares")
        out = self.mb.matmul(x=v, y=shares, transpose_y=True)
        return self.mb.reshape(x=out, shape=[1, width // 3, 1, patches], name=name)

    def start_decoder(self, inputs: dict[str, X]) -> None:
        assert self.decoder is not None
        self.inputs = inputs
        group = self.decoder.num_heads // self.decoder.num_kv_heads
        self.mask = self.mb.concat(values=[inputs["mask"]] * group, axis=2, name="mask_of_group")
        rows = inputs["mask"].shape[2]
        self.end = self.mb.add(x=inputs["position"], y=np.array([rows], np.int32), name="end")

    def cached_attention(self, qkv: X, layer: int) -> X:
        assert self.decoder is not None
        spec, mb, rows = self.decoder, self.mb, qkv.shape[3]
        kv, size = spec.num_kv_heads, spec.head_dim
        heads = mb.reshape(x=qkv, shape=[1, spec.num_heads + 2 * kv, size, rows])
        heads = mb.transpose(x=heads, perm=[0, 1, 3, 2])
        qk, v = mb.split(x=heads, split_sizes=[spec.num_heads + kv, kv], axis=1)
        first, second = mb.split(x=qk, num_splits=2, axis=3)
        swapped = mb.concat(values=[second, first], axis=3)
        turned = mb.add(x=mb.mul(x=qk, y=self.inputs["cos"]), y=mb.mul(x=swapped, y=self.inputs["sin"]))
        q, k = mb.split(x=turned, split_sizes=[spec.num_heads, kv], axis=1)
        q = mb.mul(x=mb.reshape(x=q, shape=[1, kv, -1, size]), y=np.float16(size**-0.5))
        self._write("kv_cache", k, layer)
        held, _ = self._write("kv_cache", v, spec.num_layers + layer)
        keys, values = self._layer(held, layer), self._layer(held, spec.num_layers + layer)
        name = mil_name(value_name("cached_attention", layer))
        scores = mb.add(x=mb.matmul(x=q, y=keys, transpose_y=True), y=self.mask, name=f"{name}_scores")
        out = mb.matmul(x=mb.softmax(x=scores, axis=-1, name=f"{name}_shares"), y=values)
        out = mb.transpose(x=mb.reshape(x=out, shape=[1, spec.num_heads, rows, size]), perm=[0, 1, 3, 2])
        return mb.reshape(x=out, shape=[1, spec.num_heads * size, 1, rows], name=name)

    def _layer(self, held: X, layer: int) -> X:
        """A layer of the state over the whole fixed context; the mask hides what is not written yet."""
        assert self.decoder is not None
        end = [layer + 1, self.decoder.num_kv_heads, *held.shape[2:]]
        return self.mb.slice_by_index(x=held, begin=[layer, 0, 0, 0], end=end)

    def pixel_shuffle(self, x: X, scale: int) -> X:
        rows = self.mb.transpose(x=self.mb.squeeze(x=x, axes=[2]), perm=[0, 2, 1])
        return self.start(super().pixel_shuffle(rows, scale))

    def last_position(self, x: X) -> X:
        """The row that `select` (1, 1, 1, S) marks with a one: the last real one, wherever padding begins."""
        if "select" not in self.inputs:
            return x
        return self.mb.reduce_sum(x=self.mb.mul(x=x, y=self.inputs["select"]), axes=[3], keep_dims=True)

    def finish(self, x: X, name: str) -> X:
        return self.mb.transpose(x=self.mb.squeeze(x=x, axes=[2]), perm=[0, 2, 1], name=name)
