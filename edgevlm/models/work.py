"""Plays a model on shapes and counts its work: arithmetic, weights and states that are read, values in between.

A multiplication and its addition are two operations, as everywhere where FLOPs are told. What a mask hides is counted,
since the engines compute it. Norms and activations are left out of the arithmetic: they count as values that pass
through memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from edgevlm.models.components import components
from edgevlm.models.model import ModelSpec
from edgevlm.models.record import Record, Shape
from edgevlm.models.spec import Attention, Conv, DeltaRule, Norm


@dataclass
class Work:
    """What one stage takes."""

    products: dict[str, int] = field(default_factory=dict)  # operations of linear maps, by weight
    attention: int = 0  # operations between values: scores and sums of attention, and the delta rule's
    floats: int = 0  # operations with weights that stay floats: convolutions, patches, mixtures of table rows
    read: dict[str, int] = field(default_factory=dict)  # numbers that are read of each weight: of a table, its rows
    kept: int = 0  # numbers that are read of what earlier calls kept: keys, values, states
    values: int = 0  # numbers that operations give
    widest: int = 0  # of these, the most that one gives, scores of attention aside

    @property
    def operations(self) -> int:
        return sum(self.products.values()) + self.attention + self.floats


def together(parts: Iterable[Work]) -> Work:
    """Of several calls of one graph, which reads its weights once."""
    found = Work()
    for part in parts:
        for name, count in part.products.items():
            found.products[name] = found.products.get(name, 0) + count
        found.read |= part.read
        for total in ("attention", "floats", "kept", "values"):
            setattr(found, total, getattr(found, total) + getattr(part, total))
        found.widest = max(found.widest, part.widest)
    return found


def encoding(spec: ModelSpec, height: int, width: int) -> Work:
    """Of one view of height x width pixels to its features."""
    feeds = spec.vision.feeds(np.zeros((3, height, width), np.float32))
    return _played(spec, "vision_encoder", {name: array.shape for name, array in feeds.items()}, 0)


def reading(spec: ModelSpec, new: int, past: int = 0) -> Work:
    """Of `new` embeddings behind `past` positions to the last one's logits: a prompt, or with one of them a token."""
    embeds = (1, new, spec.decoder.embed_width)
    return _played(spec, "decoder", {"inputs_embeds": embeds, "positions": (1, new)}, past)


def _played(spec: ModelSpec, name: str, inputs: dict[str, Shape], past: int) -> Work:
    component = next(component for component in components(spec) if component.name == name)
    counter = Counter(inputs, past)
    component.build(counter, inputs)
    return counter.work


class Counter(Record):
    """Values are shapes, of one sequence in the decoder; `work` is what was counted so far."""

    backend = "The count of work"

    def __init__(self, inputs: dict[str, Shape], past: int) -> None:
        """inputs: the shapes of the graph's inputs; past: positions that growing states hold before the call."""
        super().__init__()
        self.work = Work()
        self._inputs, self._past = inputs, past
        self._states: dict[str, Shape] = {}

    def _add(self, name: str, role: str, *shape: int) -> None:
        super()._add(name, role, *shape)
        self.work.read[name] = math.prod(shape)

    def _gives(self, x: Shape) -> Shape:
        self.work.values += math.prod(x)
        self.work.widest = max(self.work.widest, math.prod(x))
        return x

    # Products

    def linear(self, x: Shape, *maps: tuple[str, int], bias: bool = False) -> list[Shape]:
        for name, rows in maps:
            done = self.work.products.get(f"{name}.weight", 0)
            self.work.products[f"{name}.weight"] = done + 2 * math.prod(x) * rows
        return [self._gives(y) for y in super().linear(x, *maps, bias=bias)]

    def attend(self, q: Shape, k: Shape, v: Shape, a: Attention, mask: str | None) -> Shape:
        scores = math.prod(q[:-1]) * k[-2]
        self.work.attention += 2 * scores * (q[-1] + v[-1])
        self.work.values += scores
        return self._gives((*q[:-1], v[-1]))

    def ask(self, k: Shape, v: Shape, name: str, count: int, a: Attention, mask: str) -> Shape:
        self.work.attention += 4 * count * math.prod(k)
        return self._gives(super().ask(k, v, name, count, a, mask))

    def correct(self, x: Shape, decay: Shape, rate: Shape, r: DeltaRule, state: str) -> Shape:
        size = r.value_heads * r.key_dim * r.value_dim
        self.work.kept += size
        # At each position: what the state says of the key, its correction, what it says of the query.
        self.work.attention += 3 * 2 * x[-2] * size
        return self._gives(super().correct(x, decay, rate, r, state))

    def patch_embed(self, pixels: Shape, name: str, width: int, patch: int, bias: bool = True) -> Shape:
        y = super().patch_embed(pixels, name, width, patch, bias)
        self.work.floats += 2 * math.prod(y) * pixels[1] * patch**2
        return self._gives(y)

    def plain_linear(self, x: Shape, name: str, width: int, bias: bool = False) -> Shape:
        self.work.floats += 2 * math.prod(x) * width
        return self._gives(super().plain_linear(x, name, width, bias))

    def conv2d(self, x: Shape, name: str, grid: tuple[int, int], c: Conv) -> Shape:
        y = super().conv2d(x, name, grid, c)
        self.work.floats += 2 * math.prod(y) * (x[-1] // c.groups) * c.kernel**2
        return self._gives(y)

    def conv_at(self, x: Shape, name: str, width: int, kernel: int, places: str) -> Shape:
        self.work.floats += 2 * math.prod(x) * kernel**2
        return self._gives(super().conv_at(x, name, width, kernel, places))

    def causal_conv(self, x: Shape, name: str, width: int, kernel: int, state: str) -> Shape:
        self.work.floats += 2 * math.prod(x) * kernel
        self.work.kept += width * (kernel - 1)
        return self._gives(super().causal_conv(x, name, width, kernel, state))

    def add_mixed(self, x: Shape, name: str, rows: int, width: int, places: str, shares: str) -> Shape:
        self.work.floats += 2 * math.prod(x) * self._inputs[places][-1]
        return self._gives(super().add_mixed(x, name, rows, width, places, shares))

    def add_shares(self, x: Shape, name: str, rows: int, width: int, shares: str) -> Shape:
        self.work.floats += 2 * math.prod(x) * rows
        return self._gives(super().add_shares(x, name, rows, width, shares))

    def mix(self, x: Shape, places: str, shares: str) -> Shape:
        count, each = self._inputs[places]
        self.work.floats += 2 * count * each * x[-1]
        return self._gives((x[0], count, x[-1]))

    # What passes through memory

    def embed(self, ids: Shape, name: str, rows: int, width: int) -> Shape:
        y = super().embed(ids, name, rows, width)
        self.work.read[f"{name}.weight"] = math.prod(y)
        return self._gives(y)

    def norm(self, x: Shape, name: str, spec: Norm) -> Shape:
        return self._gives(super().norm(x, name, spec))

    def act(self, x: Shape, kind: str) -> Shape:
        return self._gives(x)

    def add(self, x: Shape, y: Shape) -> Shape:
        return self._gives(super().add(x, y))

    def mul(self, x: Shape, y: Shape | float) -> Shape:
        return self._gives(super().mul(x, y))

    # Shapes that the weight tree does not need

    def input(self, name: str) -> Shape:
        return self._inputs[name]

    def append(self, state: str, x: Shape) -> Shape:
        self._states[state] = (*x[:-2], self._past + x[-2], x[-1])
        return self.grown(state)

    def grown(self, state: str) -> Shape:
        self.work.kept += math.prod(self._states[state])
        return self._states[state]

    def windows(self, x: Shape, size: int) -> Shape:
        return (x[0] * x[2] // size, x[1], size, x[3])

    def unwindow(self, x: Shape, count: int | None = None) -> Shape:
        groups = count or x[0]
        return (x[0] // groups, x[1], groups * x[2], x[3])

    def group(self, x: Shape, count: int, width: int) -> Shape:
        return (x[0], x[1] // count, width * count)

    def take(self, x: Shape, index: str) -> Shape:
        return (x[0], *self._inputs[index], x[-1])

    def last(self, x: Shape) -> Shape:
        return (x[0], 1, x[-1])
