"""A tower that sees a picture on a sheet: whole in one square, and in overlapping crops of it on a grid of others.

The crops' states are put together to one map of the picture, without the margins that they share, and averaged to as
many as one square has; each lies beside the whole picture's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.models.ops import Ops, X
from edgevlm.models.tensor import Tensor
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.types import F32, I64


@dataclass(frozen=True)
class SheetVit(QwenVit):
    """window: patches per side of a square, which sees only itself. The whole picture stands at the left of the first
    row, which is empty otherwise; crops in the rows below.
    """

    margin: int = 0  # patches that a crop has in common with each neighbour, halved
    kind: str = "sheet_vit"

    @property
    def unit(self) -> int:
        """Patches per side of a square."""
        assert self.window is not None
        return self.window

    @property
    def side(self) -> int:
        """Pixels per side of a square."""
        return self.unit * self.patch_size

    @property
    def typical_patches(self) -> int:
        """Patches of a picture that is cut into 3 x 3 crops."""
        return 10 * self.unit**2

    @property
    def width(self) -> int:
        """Channels of a state that the projector takes."""
        return 2 * self.hidden_size

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """States of a sheet of any size: a square's, in one row."""
        return 1, self.unit**2

    def inputs(self) -> dict[str, Tensor]:
        """P patches of W squares; N states of a square, each the mixture of K of the crops'."""
        count, size = self.unit**2, 3 * self.patch_size**2
        return {
            "patches": Tensor("float32", (1, "patches", size)),
            "table_rows": Tensor("int64", ("patches", 1)),
            "table_shares": Tensor("float32", ("patches", 1)),
            "window_mask": Tensor("bool", ("windows", 1, 1, count)),
            "whole": Tensor("int64", (count,)),
            "places": Tensor("int64", (count, "mixed")),
            "shares": Tensor("float32", (count, "mixed")),
        }

    def states(self, ops: Ops, inputs: dict[str, X]) -> list[X]:
        (x,) = super().states(ops, inputs)
        return [ops.beside([ops.take(x, "whole"), ops.mix(x, "places", "shares")])]

    def feeds(self, pixels: F32) -> dict[str, npt.NDArray[Any]]:
        """The inputs for a normalized sheet (3, height, width)."""
        side, p = self.unit, self.patch_size
        rows, cols = (edge // self.side for edge in pixels.shape[1:])
        cells = pixels.reshape(3, rows, side, p, cols, side, p).transpose(1, 4, 2, 5, 0, 3, 6)
        squares = cells.reshape(rows * cols, side**2, -1)[[0, *range(cols, rows * cols)]]
        count = len(squares)
        places, shares = self._mixture_of(rows - 1, cols)
        return {
            "patches": squares.reshape(1, count * side**2, -1),
            "table_rows": np.tile(np.arange(side**2), count)[:, None],
            "table_shares": np.ones((count * side**2, 1), np.float32),
            "window_mask": np.ones((count, 1, 1, side**2), np.bool_),
            "whole": np.arange(side**2),
            "places": places,
            "shares": shares,
        }

    def join(self, feeds: Sequence[dict[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
        """The inputs for several sheets in one sequence, each of whose squares sees itself alone."""
        most = max(each["places"].shape[1] for each in feeds)
        starts = np.cumsum([0] + [each["patches"].shape[1] for each in feeds])
        joined = {name: np.concatenate([each[name] for each in feeds], axis=int(name == "patches"))
                  for name in ("patches", "table_rows", "table_shares", "window_mask")}  # fmt: skip
        joined["whole"] = np.concatenate([e["whole"] + start for e, start in zip(feeds, starts, strict=False)])
        for name in ("places", "shares"):
            moved = [e[name] + (start if name == "places" else 0) for e, start in zip(feeds, starts, strict=False)]
            padded = [np.pad(part, ((0, 0), (0, most - part.shape[1]))) for part in moved]
            joined[name] = np.concatenate(padded).astype(feeds[0][name].dtype)
        return joined

    def _mixture_of(self, rows: int, cols: int) -> tuple[I64, F32]:
        """Which states of rows x cols crops each state of the map is the mean of, (N, K): places and shares."""
        (down, high, first), (across, wide, second) = self._along(rows), self._along(cols)
        tile = 1 + down[:, None, :, None] * cols + across[None, :, None, :]
        places = (tile * self.unit + high[:, None, :, None]) * self.unit + wide[None, :, None, :]
        shares = first[:, None, :, None] * second[None, :, None, :]
        count = self.unit**2
        return places.reshape(count, -1), shares.reshape(count, -1).astype(np.float32)

    def _along(self, crops: int) -> tuple[I64, I64, npt.NDArray[np.float64]]:
        """Of the map's lines that each averaged one takes: the crop, the line in it, and the share; (side, K) each."""
        side, step = self.unit, self.unit - 2 * self.margin
        lines = crops * step + 2 * self.margin
        index = np.arange(side)
        first, end = index * lines // side, -(-(index + 1) * lines // side)
        line = first[:, None] + np.arange(int((end - first).max()))
        shares = (line < end[:, None]) / (end - first)[:, None]
        line = np.minimum(line, lines - 1)
        crop = np.clip((line - self.margin) // step, 0, crops - 1)
        return crop, line - crop * step, shares
