"""A tower of any resolution, with 2-D RoPE (arXiv 2409.12191, 2502.13923, 2511.21631) or a table (2502.14786).

Everything that depends on a picture's size is an input, which `QwenVit.feeds` computes. Patches stand in groups that
become one token each, row by row. Where some layers see windows, groups stand window by window and each window is
padded to its full size, so that window attention is attention in groups of equal length.
As transformers' models of those papers, without their permutations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.models.blocks import mask_apart, residual, rope_inputs
from edgevlm.models.ops import Ops, X
from edgevlm.models.rope import cos_sin, frequencies
from edgevlm.models.spec import Attention, Block
from edgevlm.models.tensor import Tensor
from edgevlm.models.towers import tables
from edgevlm.models.towers.neighbours import moved, neighbours
from edgevlm.types import F32, I64


@dataclass(frozen=True)
class QwenVit:
    patch_size: int  # pixels per side of one patch
    merge: int  # states per side that the projector makes one token of: patches, but where a tower joins some before
    window: int | None  # patches per side of a window; None: every layer sees the whole picture
    hidden_size: int
    num_layers: int
    full: tuple[int, ...]  # where there are windows, layers that see the whole picture; the others see one window
    block: Block
    theta: float = 10000.0
    patch_bias: bool = False
    table: int = 0  # rows per side of a learned square table of positions, resampled to each picture; 0: none
    resample: str = "corners"  # how, of `tables`
    post_norm: bool = False  # behind the last layer
    deepstack: tuple[int, ...] = ()  # layers whose states become further levels of features (arXiv 2406.04334)
    pre_norm: bool = False  # of patches, before the table is added
    frames: int = 1  # of a patch: those of a video, of which a still picture is as many equal ones
    staggered: bool = False  # a column's frequencies lie between a row's, not at the same places
    convolving: tuple[int, ...] = ()  # layers with a gated convolution over the grid in the place of attention
    kernel: int = 3  # patches per side that it takes, an odd number
    filler: float = 0.0  # every value of a patch that is not there, where a view has no whole number of groups
    kind: str = "qwen_vit"

    @property
    def attention(self) -> Attention:
        (attention,) = self.block.mixers
        assert isinstance(attention, Attention)
        return attention

    @property
    def unit(self) -> int:
        """Patches per side of a view that become one token."""
        return self.merge

    @property
    def typical_patches(self) -> int:
        """Patches of a picture of 448 x 448 pixels, for estimates of time and memory."""
        return (448 // self.patch_size) ** 2

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patch states of a view of that size in pixels."""
        return height // self.patch_size, width // self.patch_size

    def inputs(self) -> dict[str, Tensor]:
        """P patches, W windows of L = window^2 patches, N image tokens. P = W * L, padding included."""
        size, half = 3 * self.frames * self.patch_size**2, self.attention.head_dim // 2
        cos, sin = rope_inputs("patches")
        found = {"patches": Tensor("float32", (1, "patches", size))}
        if self.attention.rope:
            found |= {cos: Tensor("float32", ("patches", half)), sin: Tensor("float32", ("patches", half))}
        found["mask"] = Tensor("bool", (1, 1, 1, "patches"))
        if self.convolving:
            found["neighbours"] = Tensor("int64", ("patches", self.kernel**2))
        if self.table and self.resample in tables.DENSE:
            found["table_shares"] = Tensor("float32", ("patches", self.table**2))
        elif self.table:
            several = 2 if self.resample == "none" else 1 if self.resample in tables.SINGLE else 4
            found["table_rows"] = Tensor("int64", ("patches", several))
            found["table_shares"] = Tensor("float32", ("patches", several))
        if self.window:
            found["window_mask"] = Tensor("bool", ("windows", 1, 1, self.window**2))
            found["order"] = Tensor("int64", ("tokens",))
        return found

    def states(self, ops: Ops, inputs: dict[str, X]) -> list[X]:
        """To patch states (1, P, D), group by group, and then those behind each layer of `deepstack`."""
        x = ops.plain_linear(inputs["patches"], "vision.patch_embedding", self.hidden_size, self.patch_bias)
        x = ops.norm(x, "vision.pre_norm", self.block.norm) if self.pre_norm else x
        if self.table:
            rows = 2 * self.table if self.resample == "none" else self.table**2
            name, shape = "vision.position_embedding", (rows, self.hidden_size)
            if self.resample in tables.DENSE:
                x = ops.add_shares(x, name, *shape, "table_shares")
            else:
                x = ops.add_mixed(x, name, *shape, "table_rows", "table_shares")
        marked = []
        for i in range(self.num_layers):
            x = self._layer(ops, x, i)
            marked += [x] if i in self.deepstack else []
        return [ops.norm(x, "vision.post_norm", self.block.norm) if self.post_norm else x, *marked]

    def _layer(self, ops: Ops, x: X, i: int) -> X:
        w, block, width = f"vision.layers.{i}", self.block, self.hidden_size
        if i in self.convolving:
            conv = partial(ops.conv_at, name=f"{w}.conv", width=width, kernel=self.kernel, places="neighbours")
            x = residual(ops, x, block, w, 1, lambda h: ops.gated_conv(h, w, width, conv))
        elif self.window is None or i in self.full:
            mask = self._mask(i)
            x = residual(ops, x, block, w, 1, lambda h: ops.attention(h, w, self.attention, width, None, mask))
        else:
            size = self.window**2
            x = residual(
                ops, x, block, w, 1,
                lambda h: ops.window_attention(h, w, self.attention, width, size, "window_mask"),
            )  # fmt: skip
        return residual(ops, x, block, w, 2, lambda h: ops.mlp(h, w, block.mlp, width))

    def _mask(self, layer: int) -> str:
        """The input that says which states a layer sees."""
        return "mask"

    def feeds(self, pixels: F32) -> dict[str, npt.NDArray[Any]]:
        """The inputs for normalized pixels, sides multiples of patch_size: a picture's (3, height, width), or
        those of `frames` pictures, (3 * frames, height, width)."""
        p = self.patch_size
        rows, cols = (edge // p for edge in pixels.shape[1:])
        shown = np.broadcast_to(pixels.reshape(-1, 3, rows, p, cols, p), (self.frames, 3, rows, p, cols, p))
        cells = shown.transpose(2, 4, 1, 0, 3, 5).reshape(rows * cols, -1)
        at = self._window_order(rows, cols)  # (W, L) indices of patches in raster order, -1 for padding
        flat, real = np.maximum(at, 0).reshape(-1), (at >= 0).reshape(-1)
        row, col = flat // cols, flat % cols
        found: dict[str, npt.NDArray[Any]] = {
            "patches": np.where(real[:, None], cells[flat], np.float32(self.filler))[None]
        }
        if self.attention.rope:
            found |= dict(zip(rope_inputs("patches"), self._rope(row, col), strict=True))
        found["mask"] = real[None, None, None]
        if self.convolving:
            found["neighbours"] = neighbours(at.reshape(-1), rows, cols, self.kernel)
        if self.table:
            axes = (row, rows), (col, cols)
            found |= tables.resampled(self.resample, self.table, *axes)
        if self.window:
            found["window_mask"] = real.reshape(len(at), 1, 1, -1)
            found["order"] = self._token_order(at, rows, cols)
        return found

    def join(self, feeds: Sequence[dict[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
        """The inputs for several views in one sequence, in which the mask keeps them apart; for the eager backend."""
        joined = {
            name: np.concatenate([each[name] for each in feeds], axis=1 if name == "patches" else 0)
            for name in feeds[0]
            if name not in ("mask", "order", "neighbours")
        }
        joined["mask"] = mask_apart([each["mask"] for each in feeds])
        starts = np.cumsum([0] + [each["mask"].size for each in feeds])[:-1]
        if self.window:
            parts = [e["order"] + start // self.merge**2 for e, start in zip(feeds, starts, strict=True)]
            joined["order"] = np.concatenate(parts)
        if self.convolving:
            near = [moved(each["neighbours"], start) for each, start in zip(feeds, starts, strict=True)]
            joined["neighbours"] = np.concatenate(near)
        return joined

    def _window_order(self, rows: int, cols: int) -> I64:
        """Windows row by row; in a window, groups of merge x merge patches row by row; in a group, row by row."""
        side, m = self.window or self.merge, self.merge
        index = np.arange(rows * cols).reshape(rows, cols)
        index = np.pad(index, ((0, -rows % side), (0, -cols % side)), constant_values=-1)
        shape = (index.shape[0] // side, side // m, m, index.shape[1] // side, side // m, m)
        return index.reshape(shape).transpose(0, 3, 1, 4, 2, 5).reshape(-1, side * side).astype(np.int64)

    def _token_order(self, at: I64, rows: int, cols: int) -> I64:
        """(N,) where each token, row by row, lies among the groups of patches in window order."""
        m = self.merge
        first = at.reshape(-1, m * m)[:, 0]  # the upper left patch of each group
        groups = np.flatnonzero(first >= 0)
        token = first[groups] // cols // m * (cols // m) + first[groups] % cols // m
        order = np.empty(len(groups), np.int64)
        order[token] = groups
        return order

    def _rope(self, row: I64, col: I64) -> tuple[F32, F32]:
        """cos and sin (P, head size / 2): a quarter of a head is rotated by row, a quarter by column."""
        quarter = self.attention.head_dim // 4
        exponents = np.arange(0, 1, 0.5 / quarter, dtype=np.float32)  # those of a whole head
        rates = frequencies(self.theta, exponents)
        own = rates[::2], rates[int(self.staggered) :: 2]
        angles = np.concatenate([p[:, None].astype(np.float32) * f for p, f in zip((row, col), own, strict=True)], -1)
        return cos_sin(angles)
