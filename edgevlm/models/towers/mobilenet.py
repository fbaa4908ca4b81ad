"""A tower of inverted bottlenecks with a norm behind each map, the later of which take turns with attention whose heads
share one head of keys and values (arXiv 2404.10518, timm's mobilenetv5.py). Its last two grids are fused.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.models.ops import Ops, X
from edgevlm.models.spec import Attention, Block, Conv
from edgevlm.models.towers.vit import Vit

Grid = tuple[int, int]


@dataclass(frozen=True)
class Bottleneck:
    """Channels become more, and then `width`; beside them a residual connection, where grid and channels stay.

    Kernels are numbers of positions per side, 0 where there is none: `first` and `middle` before and behind the map
    that widens, of each channel by itself; `fused` makes that map a convolution.
    """

    width: int
    inner: int
    first: int = 0
    middle: int = 0
    fused: int = 0
    stride: int = 1  # of the last of its kernels
    kind: str = "bottleneck"

    def walk(self, ops: Ops, x: X, w: str, grid: Grid, before: int, block: Block) -> X:
        h, side = x, grid[0]
        if self.first:
            stride = 1 if self.middle else self.stride
            h = _conv(ops, h, f"{w}.first", grid, _same(before, self.first, stride, before), block, act=False)
            side //= stride
        if self.fused:
            h = _conv(ops, h, f"{w}.expand", grid, _same(self.inner, self.fused, self.stride), block)
        else:
            h = _map(ops, h, f"{w}.expand", self.inner, block)
        if self.middle:
            c = _same(self.inner, self.middle, self.stride, self.inner)
            h = _conv(ops, h, f"{w}.middle", (side, side), c, block)
        h = _map(ops, h, f"{w}.project", self.width, block, act=False)
        return ops.add(x, h) if before == self.width and self.stride == 1 else h


@dataclass(frozen=True)
class Attending:
    """Attention beside a residual connection.

    stride: of a kernel of each channel by itself, with its norm, on the way to keys and on that to values; 1: none.
    """

    attention: Attention
    kernel: int = 3
    stride: int = 1
    kind: str = "attending"

    def walk(self, ops: Ops, x: X, w: str, grid: Grid, width: int, block: Block) -> X:
        a, h = self.attention, ops.norm(x, f"{w}.norm1", block.norm)
        if self.stride == 1:
            return ops.add(x, ops.attention(h, w, a, width, None, None))
        (q,) = ops.linear(h, (f"{w}.query", a.heads * a.head_dim))
        c = _same(width, self.kernel, self.stride, width)
        fewer = {part: _conv(ops, h, f"{w}.{part}_kernel", grid, c, block, act=False) for part in ("key", "value")}
        k, v = (ops.linear(y, (f"{w}.{part}", a.kv_heads * a.head_dim))[0] for part, y in fewer.items())
        out = ops.attend_beside(q, k, v, f"{w}.attention", a)
        return ops.add(x, ops.linear(out, (f"{w}.out", width))[0])


@dataclass(frozen=True)
class MobileNet(Vit):
    """patch_size: pixels per side of a fused state. hidden_size: channels of one.

    block: the attention of the last layers, the maps of the fusion, and every norm and activation.
    """

    stem: int = 0  # channels of the first convolution
    layers: tuple[Bottleneck | Attending, ...] = ()
    fine: int = 0  # layers up to the finer of the two grids that are fused
    kind: str = "mobilenet"

    def states(self, ops: Ops, inputs: dict[str, X]) -> list[X]:
        """Normalized tiles (B, 3, S, S) to states (B, patches, D), alone."""
        block, side, width = self.block, self.image_size, self.stem
        c = Conv(width, 3, 2, bias=True, same=True)
        x, side = _conv(ops, ops.flatten(inputs["pixels"]), "vision.stem", (side, side), c, block), side // 2
        for i, layer in enumerate(self.layers):
            x = layer.walk(ops, x, f"vision.layers.{i}", (side, side), width, block)
            if isinstance(layer, Bottleneck):
                side, width = side // layer.stride, layer.width
            if i + 1 == self.fine:
                fine, grid = x, (side, side)
        if (scale := grid[0] // side) > 1:
            x = ops.pixel_unshuffle(ops.beside([x] * scale**2), grid, scale, width)
        x = _map(ops, ops.beside([fine, x]), "vision.fusion.expand", block.mlp.size, block)
        x = _map(ops, x, "vision.fusion.project", self.hidden_size, block, act=False)
        if (pool := grid[0] // self.patches_per_side) > 1:
            x = ops.mean_pool(x, grid, pool, self.hidden_size)
        return [ops.norm(x, "vision.norm", block.norm)]


def _same(width: int, kernel: int, stride: int, groups: int = 1) -> Conv:
    return Conv(width, kernel, stride, groups, bias=False, same=True)


def _conv(ops: Ops, x: X, w: str, grid: Grid, c: Conv, block: Block, *, act: bool = True) -> X:
    return _normed(ops, ops.conv2d(x, w, grid, c), w, block, act)


def _map(ops: Ops, x: X, w: str, rows: int, block: Block, *, act: bool = True) -> X:
    return _normed(ops, ops.linear(x, (w, rows))[0], w, block, act)


def _normed(ops: Ops, x: X, w: str, block: Block, act: bool) -> X:
    x = ops.norm(x, f"{w}.norm", block.norm)
    return ops.act(x, block.mlp.act) if act else x
