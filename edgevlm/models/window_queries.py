"""A projector of learned queries (arXiv 2301.12597) that attend inside windows, one for each level of features."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.models.blocks import residual
from edgevlm.models.ops import Ops, X
from edgevlm.models.spec import Attention, Block, Norm

Grid = tuple[int, int]  # rows, columns


@dataclass(frozen=True)
class WindowQueries:
    """Several such projectors, whose features stand side by side: the first is a token's own, then a level each.

    In each window of the tower's states, query x query learned queries, to which states from there are added, attend
    to each other and to the window's states, by one layer with norms behind its parts.
    """

    window: int  # states per side of a window
    query: int  # queries per side
    states: tuple[int, ...]  # of each projector: which of the tower's taps it reads
    corners: tuple[int, ...]  # ...: which of 2 x 2 neighbours is added to a query, row by row; -1: the mean
    width: int  # channels of a tap
    rows: int  # of a projector's features
    block: Block  # attention, an MLP and a norm
    norm: Norm  # of the states
    kind: str = "window_queries"

    @property
    def scale(self) -> int:
        """States per side that a token covers."""
        return self.window // self.query

    @property
    def levels(self) -> int:
        """Further levels of features."""
        return len(self.states) - 1

    def grid(self, grid: Grid) -> Grid:
        return grid[0] // self.scale, grid[1] // self.scale

    def walk(self, ops: Ops, x: X, grid: Grid, w: str) -> X:
        taps = max(self.states) + 1
        states = ops.split(x, *[self.width] * taps) if taps > 1 else [x]
        pairs = enumerate(zip(self.states, self.corners, strict=True))
        return ops.beside([self._level(ops, states[s], corner, grid, f"{w}.levels.{n}") for n, (s, corner) in pairs])

    def _level(self, ops: Ops, x: X, corner: int, grid: Grid, w: str) -> X:
        width, few, many = self.width, self.query**2, self.window**2
        (attention,), mlp, count = (
            self.block.mixers,
            self.block.mlp,
            (grid[0] // self.window) * (grid[1] // self.window),
        )
        assert isinstance(attention, Attention)
        x, small = ops.norm(x, f"{w}.norm", self.norm), self.grid(grid)
        if corner < 0:
            picked = ops.mean_pool(x, grid, self.scale, width)
        else:
            picked = ops.split(ops.pixel_shuffle(x, grid, 2, width), *[width] * 4)[corner]
        keys = self._windows(ops, x, grid, self.window, f"{w}.positions")
        h = ops.norm(self._windows(ops, picked, small, self.query, f"{w}.query"), f"{w}.query_norm", self.block.norm)
        for number, (name, size) in enumerate(((w, few), (f"{w}.cross", many)), 1):
            h = residual(
                ops, h, self.block, w, number,
                lambda y, name=name, size=size: ops.window_cross(  # type: ignore[misc]
                    y, y if size == few else keys, name, attention, width, (few, size), count
                ),
            )  # fmt: skip
        h = residual(ops, h, self.block, w, 3, lambda y: ops.mlp(y, w, mlp, width))
        h = ops.pixel_unshuffle(ops.group(h, few, width), small, self.query, width)
        return ops.linear(h, (f"{w}.out", self.rows), bias=True)[0]

    def _windows(self, ops: Ops, x: X, grid: Grid, side: int, name: str) -> X:
        """(B, S, D) window by window, in each row by row, with the weight `name` added to each."""
        cells = ops.pixel_shuffle(x, grid, side, self.width)
        return ops.apart(ops.add(cells, ops.vector(name, side**2 * self.width)), side**2, self.width)
