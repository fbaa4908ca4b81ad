"""A tower whose patches come out of convolutions (arXiv 2303.14189, 2412.13303): stages on ever coarser grids.

Batch norms and the branches that it was trained with are folded into its kernels: what is left is a kernel for each.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.models.ops import Ops, X
from edgevlm.models.spec import Attention, Conv
from edgevlm.models.towers.vit import Vit

Grid = tuple[int, int]


@dataclass(frozen=True)
class ConvVit(Vit):
    """patch_size: pixels per side of a state behind the last stage. hidden_size: channels behind the last kernel.

    block: of the last stage, whose heads and ratio of widths the others share.
    """

    widths: tuple[int, ...] = ()  # channels of each stage
    depths: tuple[int, ...] = ()  # blocks of each
    attending: int = 2  # the last stages, whose blocks attend; those of the others convolve
    squeeze: int = 16  # channels per inner one of the gate behind the last kernel
    kind: str = "conv_vit"

    def states(self, ops: Ops, inputs: dict[str, X]) -> list[X]:
        """Normalized tiles (B, 3, S, S) to states (B, patches, D), alone."""
        x, grid, first = ops.flatten(inputs["pixels"]), (self.image_size,) * 2, self.widths[0]
        x, grid = self._conv(ops, x, "vision.stem_1", grid, Conv(first, 3, 2))
        x, grid = self._conv(ops, x, "vision.stem_2", grid, Conv(first, 3, 2, first))
        x = ops.act(ops.linear(x, ("vision.stem_3", first), bias=True)[0], self.block.mlp.act)
        layer = 0
        for stage, width in enumerate(self.widths):
            if stage:
                x, grid = self._conv(ops, x, f"vision.coarser_{stage}", grid, Conv(width, 7, 2, self.widths[stage - 1]))
                x = ops.act(ops.linear(x, (f"vision.mixed_{stage}", width), bias=True)[0], self.block.mlp.act)
            if self._attends(stage):
                x = ops.conv2d(x, f"vision.positions_{stage}", grid, Conv(width, 7, 1, width))
            for _ in range(self.depths[stage]):
                x = self._block(ops, x, f"vision.layers.{layer}", grid, width, self._attends(stage))
                layer += 1
        x = ops.conv2d(x, "vision.last", grid, Conv(self.hidden_size, 3, 1, self.widths[-1]))
        gate = ops.linear(ops.mean(x), ("vision.squeeze", self.hidden_size // self.squeeze), bias=True)[0]
        gate = ops.linear(ops.act(gate, "relu"), ("vision.excite", self.hidden_size), bias=True)[0]
        return [ops.act(ops.mul(x, ops.act(gate, "sigmoid")), self.block.mlp.act)]

    def _attends(self, stage: int) -> bool:
        return stage >= len(self.widths) - self.attending

    def _conv(self, ops: Ops, x: X, name: str, grid: Grid, c: Conv) -> tuple[X, Grid]:
        x = ops.conv2d(x, name, grid, c)
        return ops.act(x, self.block.mlp.act), (grid[0] // c.stride, grid[1] // c.stride)

    def _block(self, ops: Ops, x: X, w: str, grid: Grid, width: int, attends: bool) -> X:
        mlp, (last,) = self.block.mlp, self.block.mixers
        assert isinstance(last, Attention)
        if attends:
            heads = width // last.head_dim
            a = Attention(heads, heads, last.head_dim, out_bias=True)
            x = ops.add(x, ops.attention(ops.norm(x, f"{w}.norm1", self.block.norm), w, a, width, None, None))
        else:
            x = ops.conv2d(x, f"{w}.mix", grid, Conv(width, 3, 1, width))
        h = ops.conv2d(x, f"{w}.conv", grid, Conv(width, 7, 1, width))
        size = mlp.size // self.widths[-1] * width
        h = ops.act(ops.linear(h, (f"{w}.fc1", size), bias=True)[0], mlp.act)
        return ops.add(x, ops.linear(h, (f"{w}.fc2", width), bias=True)[0])
