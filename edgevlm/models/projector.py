"""Projectors: a chain of steps from patch states to the decoder's embeddings."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.models.ops import Ops, X
from edgevlm.models.spec import Attention, Mlp, Norm
from edgevlm.models.window_queries import WindowQueries

Grid = tuple[int, int]  # rows, columns


class _SameGrid:
    """A step that leaves the tokens where they are."""

    def grid(self, grid: Grid) -> Grid:
        return grid


@dataclass(frozen=True)
class Linear(_SameGrid):
    name: str  # the weight is <projector>.<name>
    rows: int
    bias: bool = True
    kind: str = "linear"

    def walk(self, ops: Ops, x: X, grid: Grid, w: str) -> X:
        return ops.linear(x, (f"{w}.{self.name}", self.rows), bias=self.bias)[0]


@dataclass(frozen=True)
class Act(_SameGrid):
    act: str
    kind: str = "act"

    def walk(self, ops: Ops, x: X, grid: Grid, w: str) -> X:
        return ops.act(x, self.act)


@dataclass(frozen=True)
class Gated(_SameGrid):
    """A gated MLP that gives `rows` values: <projector>.gate, .up and .down."""

    mlp: Mlp
    rows: int
    kind: str = "gated"

    def walk(self, ops: Ops, x: X, grid: Grid, w: str) -> X:
        return ops.mlp(x, w, self.mlp, self.rows)


@dataclass(frozen=True)
class Normalize(_SameGrid):
    norm: Norm
    name: str = "norm"  # the weight is <projector>.<name>
    kind: str = "norm"

    def walk(self, ops: Ops, x: X, grid: Grid, w: str) -> X:
        return ops.norm(x, f"{w}.{self.name}", self.norm)


@dataclass(frozen=True)
class Positions(_SameGrid):
    """A table of positions is added."""

    rows: int
    width: int
    kind: str = "positions"

    def walk(self, ops: Ops, x: X, grid: Grid, w: str) -> X:
        return ops.add_table(x, f"{w}.positions", self.rows, self.width)


@dataclass(frozen=True)
class Shuffle:
    """scale x scale neighbours on the grid become channels, row by row (pixel shuffle, arXiv 2408.12637)."""

    scale: int
    width: int  # channels before
    kind: str = "shuffle"

    def walk(self, ops: Ops, x: X, grid: Grid, w: str) -> X:
        return ops.pixel_shuffle(x, grid, self.scale, self.width)

    def grid(self, grid: Grid) -> Grid:
        return grid[0] // self.scale, grid[1] // self.scale


@dataclass(frozen=True)
class Pool:
    """scale x scale neighbours on the grid become their mean."""

    scale: int
    width: int  # channels
    kind: str = "pool"

    def walk(self, ops: Ops, x: X, grid: Grid, w: str) -> X:
        return ops.mean_pool(x, grid, self.scale, self.width)

    def grid(self, grid: Grid) -> Grid:
        return grid[0] // self.scale, grid[1] // self.scale


@dataclass(frozen=True)
class Group:
    """side x side neighbours, which a grid tower leaves next to each other, become channels."""

    side: int
    width: int  # channels before
    kind: str = "group"

    def walk(self, ops: Ops, x: X, grid: Grid, w: str) -> X:
        return ops.group(x, self.side**2, self.width)

    def grid(self, grid: Grid) -> Grid:
        return grid[0] // self.side, grid[1] // self.side


@dataclass(frozen=True)
class Average:
    """side x side neighbours, which a grid tower leaves next to each other, become their mean."""

    side: int
    width: int  # channels
    kind: str = "average"

    def walk(self, ops: Ops, x: X, grid: Grid, w: str) -> X:
        return ops.mean_group(x, self.side**2, self.width)

    def grid(self, grid: Grid) -> Grid:
        return -(-grid[0] // self.side), -(-grid[1] // self.side)


@dataclass(frozen=True)
class Take(_SameGrid):
    """Tokens in reading order: the rows that an input of the tower names."""

    index: str
    kind: str = "take"

    def walk(self, ops: Ops, x: X, grid: Grid, w: str) -> X:
        return ops.take(x, self.index)


@dataclass(frozen=True)
class Resample:
    """Learned queries attend to patch states, whose keys have the tower's input "places" (arXiv 2308.12966)."""

    count: int  # of queries: a view's tokens, whatever its size
    heads: int
    width: int
    norm: Norm  # of states, and of what the queries found
    kind: str = "resample"

    def walk(self, ops: Ops, x: X, grid: Grid, w: str) -> X:
        x = ops.norm(x, f"{w}.norm", self.norm)
        (k,) = ops.linear(ops.add_input(x, "places"), (f"{w}.k", self.width), bias=True)
        (v,) = ops.linear(x, (f"{w}.v", self.width), bias=True)
        attention = Attention(self.heads, self.heads, self.width // self.heads)
        x = ops.ask(k, v, f"{w}.queries", self.count, attention, "view_mask")
        return ops.norm(ops.linear(x, (f"{w}.o", self.width), bias=True)[0], f"{w}.norm_after", self.norm)

    def grid(self, grid: Grid) -> Grid:
        return 1, self.count


@dataclass(frozen=True)
class Queries:
    """Learned queries that attend to patch states (Q-Former or resampler): trained here, not exported."""

    connector: str  # "qformer" | "resampler"
    count: int
    kind: str = "queries"

    def walk(self, ops: Ops, x: X, grid: Grid, w: str) -> X:
        raise NotImplementedError("a query connector is played by torch alone")

    def grid(self, grid: Grid) -> Grid:
        return 1, self.count


Step = (
    Linear | Act | Gated | Normalize | Positions | Shuffle | Pool | Group | Average | Take | Resample | Queries
    | WindowQueries
)  # fmt: skip


def projector(ops: Ops, x: X, steps: tuple[Step, ...], grid: Grid, w: str = "projector") -> X:
    """Patch states (B, P, D) on a grid to features (B, tokens, decoder hidden size), by weights that begin with `w`."""
    for step in steps:
        x = step.walk(ops, x, grid, w)
        grid = step.grid(grid)
    return x
