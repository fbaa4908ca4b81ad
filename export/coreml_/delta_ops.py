"""The delta rule in MIL: the positions of a call at once, in products of matrices (arXiv 2406.06484, 2412.06464).

Position i learns d_i = rate_i (v_i - k_i^T M_i), where M_i is the state that it finds. With keys k, decays g, and
w_ij = exp(g_j+1 + ... + g_i), what positions before it have written is a lower triangular system: (1 + A) d = rate (v -
w_i0 k M), A_ij = rate_i w_ij k_i^T k_j for j < i. Its inverse is put together from those of halves, which holds in fp16
where a series of powers of A does not.
"""

from __future__ import annotations

import numpy as np

from edgevlm.export.coreml_.state_ops import StateOps
from edgevlm.models.ops import X
from edgevlm.models.spec import DeltaRule
from edgevlm.runtimes.coreml.inputs import CHUNK_ROWS, MASK_VALUE
from edgevlm.types import F32


class DeltaOps(StateOps):
    """Values per head are (key heads, value heads per key head, S, d): products repeat no key."""

    def correct(self, x: X, decay: X, rate: X, r: DeltaRule, state: str) -> X:
        mb, groups, each = self.mb, r.key_heads, r.value_heads // r.key_heads
        keys, shape = r.key_heads * r.key_dim, (r.key_heads, each, r.key_dim, r.value_dim)
        q, k, v = mb.split(x=self._rows(x), split_sizes=[keys, keys, r.value_heads * r.value_dim], axis=2)
        q, k = (self._unit(self._by_head(part, groups, 1, r.key_dim)) for part in (q, k))
        v = self._by_head(v, groups, each, r.value_dim)
        g, rate = (self._by_head(self._rows(part), groups, each, 1) for part in (decay, rate))
        q, held = mb.mul(x=q, y=np.float16(r.key_dim**-0.5)), self._kept(state, shape)

        lower, before = self._square("lower", x), self._square("before", x)
        between = mb.matmul(x=lower, y=mb.mul(x=g, y=before))  # sums of decays after j, up to i
        weights = mb.exp(x=mb.add(x=between, y=self._square("unseen", x)))
        kept = mb.exp(x=mb.matmul(x=lower, y=g))  # of the state at the start of the call
        system = mb.mul(x=mb.mul(x=weights, y=before), y=mb.mul(x=rate, y=mb.matmul(x=k, y=k, transpose_y=True)))
        said = mb.mul(x=kept, y=mb.matmul(x=k, y=held))
        learned = mb.matmul(x=self._inverse(system, x), y=mb.mul(x=rate, y=mb.sub(x=v, y=said)))
        seen = mb.mul(x=weights, y=mb.matmul(x=q, y=k, transpose_y=True))
        out = mb.add(x=mb.mul(x=kept, y=mb.matmul(x=q, y=held)), y=mb.matmul(x=seen, y=learned))

        left = mb.transpose(x=self._part(weights, 2, -1, 0), perm=[0, 1, 3, 2])  # of each position at the end
        written = mb.matmul(x=k, y=mb.mul(x=left, y=learned), transpose_x=True)
        self._keep(state, mb.add(x=mb.mul(x=self._part(kept, 2, -1, 0), y=held), y=written), shape)
        return mb.reshape(x=out, shape=[1, r.value_heads, -1, r.value_dim])

    def _by_head(self, x: X, groups: int, each: int, size: int) -> X:
        """(1, S, groups * each * size) to (groups, each, S, size)."""
        split = self.mb.reshape(x=x, shape=[-1, groups * each, size])
        return self.mb.reshape(x=self.mb.transpose(x=split, perm=[1, 0, 2]), shape=[groups, each, -1, size])

    def _unit(self, x: X) -> X:
        """Rows of length one: scaled by their largest value first, whose square fp16 may not hold."""
        mb = self.mb
        largest = mb.maximum(x=mb.reduce_max(x=mb.abs(x=x), axes=[-1], keep_dims=True), y=np.float16(1e-4))
        scaled = mb.real_div(x=x, y=largest)
        total = mb.reduce_sum(x=mb.square(x=scaled), axes=[-1], keep_dims=True)
        return mb.mul(x=scaled, y=mb.rsqrt(x=total, epsilon=np.float16(1e-6)))

    def _inverse(self, system: X, x: X) -> X:
        """(1 + A)^-1: of blocks of 1, 2, 4 ... rows on the diagonal, each from the two halves before it."""
        found, size, rows = self._square("same", x), 1, x.shape[self.position_axis]
        while size < (rows if isinstance(rows, int) else CHUNK_ROWS):
            corner = self.mb.mul(x=system, y=self._square(f"halves of {2 * size}", x))
            step = self.mb.matmul(x=self.mb.matmul(x=found, y=corner), y=found)
            found, size = self.mb.sub(x=found, y=step), 2 * size
        return found

    def _square(self, kind: str, x: X) -> X:
        """(1, 1, S, S) of a pattern of rows and columns, cut to this call's rows; one for all layers."""
        rows = x.shape[self.position_axis]
        if kind not in self._shared:
            name, whole = f"rows_{kind.replace(' ', '_')}", _pattern(kind)[None, None].astype(np.float16)
            if isinstance(rows, int):
                self._shared[kind] = self._const(np.ascontiguousarray(whole[:, :, :rows, :rows]), f"{name}_{rows}")
            else:
                part = self.mb.slice_by_index(x=self._const(whole, name), begin=[0, 0, 0, 0], end=self._corner(x))
                self._shared[kind] = part
        return self._shared[kind]

    def _corner(self, x: X) -> X:
        """[1, 1, S, S] of a call's S rows."""
        if "corner" not in self._shared:
            axis = self.position_axis
            size = self.mb.slice_by_index(x=self.mb.shape(x=x), begin=[axis], end=[axis + 1])
            one = np.array([1, 1], np.int32)
            self._shared["corner"] = self.mb.concat(values=[one, size, size], axis=0)
        return self._shared["corner"]


def _pattern(kind: str) -> F32:
    """Rows see columns: "lower" up to their own, "before" the earlier ones, "same" their own; "unseen" is added to hide
    the others; "halves of n" is of blocks of n rows the lower half's rows at the upper half's columns."""
    row, column = np.arange(CHUNK_ROWS)[:, None], np.arange(CHUNK_ROWS)[None]
    if kind == "unseen":
        return np.asarray(np.where(column <= row, 0, MASK_VALUE), np.float32)
    if kind.startswith("halves of "):
        size = int(kind.removeprefix("halves of "))
        seen = (row // size == column // size) & (row % size >= size // 2) & (column % size < size // 2)
    else:
        seen = {"lower": column <= row, "before": column < row, "same": column == row}[kind]
    return np.asarray(seen, np.float32)
