"""A tower of any grid that behind one of its layers joins 2 x 2 neighbours: later layers see a grid of half the sides.

The four attend to each other, then a map of all of them is added to their mean (the ViTWindowAttentionMerger of
transformers). Patches stand so that the four are neighbours in the sequence, and so are the states of one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.models.blocks import mask_apart, residual
from edgevlm.models.ops import Ops, X
from edgevlm.models.tensor import Tensor
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.types import F32, I64


@dataclass(frozen=True)
class HalvedVit(QwenVit):
    halved: int = 0  # the layer behind which neighbours are joined
    kind: str = "halved_vit"

    @property
    def unit(self) -> int:
        return 2 * self.merge

    def grid(self, height: int, width: int) -> tuple[int, int]:
        rows, cols = super().grid(height, width)
        return rows // 2, cols // 2

    def inputs(self) -> dict[str, Tensor]:
        return super().inputs() | {"joined_mask": Tensor("bool", (1, 1, 1, "joined"))}

    def _mask(self, layer: int) -> str:
        return "mask" if layer <= self.halved else "joined_mask"

    def _layer(self, ops: Ops, x: X, i: int) -> X:
        x = super()._layer(ops, x, i)
        return self._join(ops, x) if i == self.halved else x

    def _join(self, ops: Ops, x: X) -> X:
        w, block, width = "vision.join", self.block, self.hidden_size
        x = residual(ops, x, block, w, 1, lambda h: ops.window_attention(h, w, self.attention, width, 4, None))
        x = ops.group(x, 4, width)
        first, *others = ops.split(x, *[width] * 4)
        for other in others:
            first = ops.add(first, other)
        h = ops.mlp(ops.norm(x, f"{w}.norm2", block.norm), w, replace(block.mlp, size=4 * block.mlp.size), width)
        return ops.add(h, ops.mul(first, 0.25))

    def feeds(self, pixels: F32) -> dict[str, npt.NDArray[Any]]:
        found = super().feeds(pixels)
        return found | {"joined_mask": found["mask"][..., ::4]}

    def join(self, feeds: Sequence[dict[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
        masks = [each["joined_mask"] for each in feeds]
        plain = [{name: value for name, value in each.items() if name != "joined_mask"} for each in feeds]
        return super().join(plain) | {"joined_mask": mask_apart(masks)}

    def _window_order(self, rows: int, cols: int) -> I64:
        """Tokens row by row; in each, the 2 x 2 patches of each state, state by state."""
        side = self.unit
        index = np.arange(rows * cols).reshape(rows // side, self.merge, 2, cols // side, self.merge, 2)
        return index.transpose(0, 3, 1, 4, 2, 5).reshape(-1, side * side).astype(np.int64)
