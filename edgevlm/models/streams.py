"""Alternating updates (AltUp, arXiv 2301.13310): several streams of states, of which each layer computes the first.

Before a layer every stream is predicted from all of them, and behind it each is corrected by what the first one turned
out to be. How much of what goes where is for every position a small map of the first stream's own state.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

from edgevlm.models.ops import Ops, X
from edgevlm.models.spec import BARE, Decoder, Norm


def spread(ops: Ops, x: X, d: Decoder) -> list[X]:
    """Embeddings (S, D) as the first stream, and maps of them, of the same size, as the others."""
    names = [f"decoder.spread_{n}" for n in range(1, d.streams)]
    size = ops.root_mean_square(x, "decoder.spread_size", d.hidden_size)
    maps = ops.linear(x, *((name, d.hidden_size) for name in names))
    return [x, *(ops.mul(ops.norm(m, f"{n}_norm", BARE), size) for n, m in zip(names, maps, strict=True))]


def joined(ops: Ops, streams: list[X], d: Decoder) -> X:
    """The mean of the first stream and of maps of the others, of its size."""
    total, *others = streams
    size = ops.root_mean_square(total, "decoder.join_size", d.hidden_size)
    for n, stream in enumerate(others, 1):
        made = ops.linear(stream, (name := f"decoder.join_{n}", d.hidden_size))[0]
        total = ops.add(total, ops.mul(ops.norm(made, f"{name}_norm", BARE), size))
    return ops.mul(total, 1 / d.streams)


def behind(ops: Ops, streams: list[X], w: str, d: Decoder, norm: Norm, own: Callable[[X], X]) -> list[X]:
    """The streams behind a layer, of which `own` is what it does to the first."""
    count = len(streams)
    shares = ops.split(_routed(ops, streams[0], w, "predict", count**2, norm, d), *[1] * count**2)
    first, *others = (
        reduce(ops.add, (ops.mul(x, share) for x, share in zip(streams, shares[n * count :], strict=False)), stream)
        for n, stream in enumerate(streams)
    )
    new = own(first)
    off = ops.add(new, ops.mul(first, -1.0))
    shares = ops.split(_routed(ops, new, w, "correct", count, norm, d), *[1] * count)
    return [
        ops.add(new, ops.mul(off, shares[0])),
        *(ops.add(x, ops.add(off, ops.mul(off, share))) for x, share in zip(others, shares[1:], strict=True)),
    ]


def _routed(ops: Ops, x: X, w: str, part: str, count: int, norm: Norm, d: Decoder) -> X:
    """`count` numbers for each position: maps too small and too telling to be quantized."""
    x = ops.mul(ops.norm(x, f"{w}.router_norm", norm), d.hidden_size**-0.5)  # halfway, for float16's smallest numbers
    routes = ops.mul(ops.plain_linear(x, f"{w}.router", d.streams), d.hidden_size**-0.5)
    return ops.plain_linear(ops.act(routes, "tanh"), f"{w}.{part}", count)
