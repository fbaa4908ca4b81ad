"""The `ane` profile, for the Neural Engine: (1, D, 1, S) values, 1x1 convolutions, plain matmul and softmax.

Layout after Apple's "Deploying Transformers on the Apple Neural Engine" (ml-ane-transformers); one rank-4 state for
keys and values after Anemll. Not yet confirmed on a device: see docs/coreml.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.export.coreml_.mil_ops import MilOps
from edgevlm.export.coreml_.options import ANE_ROWS
from edgevlm.export.coreml_.state_ops import mil_name
from edgevlm.models.ops import X
from edgevlm.models.spec import Attention

HEADS = ("decoder.embed", "decoder.head")
MAX_DIM = 65536  # larger axes leave the Neural Engine (maderix/ANE #26)


class AneOps(MilOps):
    """Emits one function of the `ane` profile, whose shapes are fixed. Heads are (1, H, S, d), as in `gpu`."""

    backend = "The CoreML profile 'ane'"
    channel_axis = 1
    position_axis = 3
    plain_attention = True

    def load(self, x: X) -> X:
        """(1, S, D) to (1, D, 1, S)."""
        return self.mb.expand_dims(x=self.mb.transpose(x=x, perm=[0, 2, 1]), axes=[2])

    def output(self, x: X, name: str) -> X:
        return self.mb.transpose(x=self.mb.squeeze(x=x, axes=[2]), perm=[0, 2, 1], name=name)

    def _shape_weight(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array[:, :, None, None]

    def _shape_vector(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(array.T)[None, :, None]

    def patch_embed(self, pixels: X, name: str, width: int, patch: int, bias: bool = True) -> X:
        x = self._convolve(pixels, name, patch, bias)
        return self.mb.reshape(x=x, shape=[1, width, 1, x.shape[2] * x.shape[3]], name=mil_name(name))

    def flatten(self, pixels: X) -> X:
        return self.mb.reshape(x=pixels, shape=[1, pixels.shape[1], 1, pixels.shape[2] * pixels.shape[3]])

    def _cells(self, x: X, grid: tuple[int, int]) -> X:
        return self.mb.reshape(x=x, shape=[1, x.shape[1], *grid])

    def linear(self, x: X, *maps: tuple[str, int], bias: bool = False) -> list[X]:
        """The first value of a head with more outputs than an axis may have is a list: its parts."""
        ((name, total), *others) = maps
        if name not in HEADS or others or total <= MAX_DIM:
            return super().linear(x, *maps, bias=bias)
        count = -(-total // MAX_DIM)
        size, op = -(-total // count), mil_name(name)
        parts = []
        for i in range(count):
            rows = slice(i * size, min(total, (i + 1) * size))
            parts.append(self._multiply(x, f"{op}_{i}", {"weight": self._matrix((name,), f"{op}_{i}_weight", rows)}))
        return [parts]

    def _multiply(self, x: X, op: str, inputs: dict[str, X]) -> X:
        return self.mb.conv(x=x, strides=[1, 1], pad_type="valid", name=op, **inputs)

    def last(self, x: X) -> X:
        """The row that `select` (1, 1, 1, S) marks with a one: the last real one, wherever padding begins."""
        if "select" not in self.inputs:
            return x
        return self.mb.reduce_sum(x=self.mb.mul(x=x, y=self.inputs["select"]), axes=[3], keep_dims=True)

    def group(self, x: X, count: int, width: int) -> X:
        return self.load(super().group(self._rows(x), count, width))

    def pixel_shuffle(self, x: X, grid: tuple[int, int], scale: int, width: int) -> X:
        return self.load(super().pixel_shuffle(self._rows(x), grid, scale, width))

    def apart(self, x: X, count: int, width: int) -> X:
        return self.load(super().apart(self._rows(x), count, width))

    def pixel_unshuffle(self, x: X, grid: tuple[int, int], scale: int, width: int) -> X:
        return self.load(super().pixel_unshuffle(self._rows(x), grid, scale, width))

    def mean_pool(self, x: X, grid: tuple[int, int], scale: int, width: int) -> X:
        return self.load(super().mean_pool(self._rows(x), grid, scale, width))

    def _rows(self, x: X) -> X:
        """(1, D, 1, S) to (1, S, D)."""
        return self.mb.transpose(x=self.mb.squeeze(x=x, axes=[2]), perm=[0, 2, 1])

    def mul_heads(self, x: X, y: X, count: int, size: int) -> X:
        heads = self.mb.reshape(x=x, shape=[1, count, size, x.shape[3]])
        scaled = self.mb.mul(x=heads, y=self.mb.reshape(x=y, shape=[1, count, 1, y.shape[3]]))
        return self.mb.reshape(x=scaled, shape=list(x.shape))

    # Attention

    def attention(self, x: X, w: str, a: Attention, width: int, state: str | None, mask: str | None) -> X:
        if state or mask or a.rope or a.qk_norm or a.softcap or a.heads != a.kv_heads or a.v_norm or a.clipped:
            return super().attention(x, w, a, width, state, mask)
        # Heads as channels, (1, H, d, S): nothing is transposed.
        mb, rows = self.mb, a.heads * a.head_dim
        qkv = self._product(x, ((f"{w}.q", rows), (f"{w}.k", rows), (f"{w}.v", rows)), a.bias)
        heads = mb.reshape(x=qkv, shape=[1, 3 * a.heads, a.head_dim, x.shape[3]])
        q, k, v = mb.split(x=heads, num_splits=3, axis=1)
        q = mb.mul(x=q, y=np.float16(a.head_dim**-0.5 if a.scale is None else a.scale))
        shares = mb.softmax(x=mb.matmul(x=q, y=k, transpose_x=True), axis=-1)
        out = mb.matmul(x=v, y=shares, transpose_y=True)
        out = self.named(f"{w}.attention", mb.reshape(x=out, shape=[1, rows, 1, x.shape[3]]))
        return self.linear(out, (f"{w}.o", width), bias=a.out_bias)[0]

    def heads(self, x: X, count: int, size: int) -> X:
        heads = self.mb.reshape(x=x, shape=[1, count, size, x.shape[3]])
        return self.mb.transpose(x=heads, perm=[0, 1, 3, 2])

    def merge(self, x: X) -> X:
        _, heads, rows, size = x.shape
        return self.mb.reshape(x=self.mb.transpose(x=x, perm=[0, 1, 3, 2]), shape=[1, heads * size, 1, rows])

    def _repeat(self, mask: X, group: int, name: str) -> X:
        return self.mb.concat(values=[mask] * group, axis=2, name=name)

    def _read(self, held: X, state: str, end: X) -> X:
        """A layer of the state over the whole fixed context; the mask hides what is not written yet."""
        assert self.cache is not None
        layer = self.cache.places[state][1]
        read = self.mb.slice_by_index(x=held, begin=[layer, 0, 0, 0], end=[layer + 1, *held.shape[1:]])
        self._grown[state] = read
        return read

    def _write(self, state: str, rows: X) -> tuple[X, X]:
        """In parts of as many rows as the Neural Engine writes at once."""
        parts = range(0, rows.shape[2], ANE_ROWS)
        if len(parts) == 1:
            return super()._write(state, rows)
        for start in parts:
            stop = min(start + ANE_ROWS, rows.shape[2])
            part = self.mb.slice_by_index(
                x=rows, begin=[0, 0, start, 0], end=[0, 0, stop, 0], end_mask=[True, True, False, True]
            )
            written = self._write_to(state, part, self._place(start), self._place(stop))
        return written

    def _place(self, row: int) -> X:
        """The position of that row of the call, (1,)."""
        if (key := f"position_{row}") not in self._shared:
            self._shared[key] = self.mb.add(x=self.inputs["position"], y=np.array([row], np.int32), name=key)
        return self._shared[key]

    def _end(self) -> X:
        rows = self.inputs["embeddings"].shape[1]
        return self.mb.add(x=self.inputs["position"], y=np.array([rows], np.int32), name="end")
