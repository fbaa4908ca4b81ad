"""What a decoder in MIL carries from call to call: how its states are read, written and packed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.export.coreml_.cache import Cache
from edgevlm.export.coreml_.package import Mil
from edgevlm.export.coreml_.store import WeightStore
from edgevlm.models.ops import Ops, X


class StateOps(Ops):
    """Operations on states, and what every operation of MIL needs. X is as in `MilOps`."""

    channel_axis = -1
    position_axis = 1

    def __init__(
        self, mil: Mil, store: WeightStore, inputs: Mapping[str, X] | None = None, cache: Cache | None = None
    ) -> None:
        """inputs: the function's, by name. cache: where the decoder's growing states lie."""
        self.mil, self.mb, self.store, self.inputs, self.cache = mil, mil.mb, store, inputs or {}, cache
        self._shared: dict[str, X] = {}
        self._grown: dict[str, X] = {}
        self._named: dict[str, int] = {}

    def load(self, x: X) -> X:
        """An input (1, S, D) as the operations take it."""
        return x

    def _rows(self, x: X) -> X:
        """The reverse: an activation as (1, S, D)."""
        return x

    def _shape_vector(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(S, D) or (D,) as it is added to activations."""
        return array[None]

    def _const(self, value: npt.NDArray[Any], name: str) -> X:
        const = self.mb.const(val=value, name=name)
        const.op.weight_id = name
        return const

    def _own_name(self, name: str) -> str:
        """An operation's name in MIL; of one that reads a weight again, another than the first one's."""
        count = self._named[name] = self._named.get(name, 0) + 1
        return mil_name(name if count == 1 else f"{name}_{count}")

    def append(self, state: str, x: X) -> X:
        held, end = self._write(state, x)
        return self._read(held, state, end)

    def grown(self, state: str) -> X:
        return self._grown[state]

    def _grow(self, state: str, k: X, v: X) -> tuple[X, X]:
        """Where one state holds both, both are written before either is read, so that it does without a copy."""
        assert self.cache is not None, "a decoder needs a cache"
        key, value = f"{state}.key", f"{state}.value"
        if self.cache.places[key][0] != self.cache.places[value][0]:
            return self.append(key, k), self.append(value, v)
        _, end_of_keys = self._write(key, k)
        held, end = self._write(value, v)
        return self._read(held, key, end_of_keys), self._read(held, value, end)

    def _read(self, held: X, state: str, end: X) -> X:
        """What a layer of a packed state holds so far, (1, kv heads, end, head size)."""
        assert self.cache is not None
        read = self.mb.slice_by_index(x=held, begin=[self.cache.places[state][1], 0, 0, 0], end=end)
        self._grown[state] = read
        return read

    def _write(self, state: str, rows: X) -> tuple[X, X]:
        """The packed state with `rows` at `position` of its layer, and the corner after the last written element."""
        if "end" not in self._shared:
            self._shared["end"] = self._end()
        return self._write_to(state, rows, self.inputs["position"], self._shared["end"])

    def _write_to(self, state: str, rows: X, first: X, last: X) -> tuple[X, X]:
        """... at the positions from `first` to `last`."""
        assert self.cache is not None, "a decoder needs a cache"
        mb, (packed, layer) = self.mb, self.cache.places[state]
        _, kv, _, size = self.cache.packed[packed]

        def corner(row: int, head: int, position: X, column: int) -> X:
            one = [np.array([n], np.int32) for n in (row, head, column)]
            return mb.concat(values=[one[0], one[1], position, one[2]], axis=0)

        begin, end = corner(layer, 0, first, 0), corner(layer + 1, kv, last, size)
        old = mb.read_state(input=self.inputs[packed])
        new = mb.slice_update(x=old, update=rows, begin=begin, end=end)
        return mb.coreml_update_state(state=self.inputs[packed], value=new), end

    def causal_conv(self, x: X, name: str, width: int, kernel: int, state: str) -> X:
        """A sum of shifted products: one line of taps for each of the kernel's positions."""
        mb, axis, shape = self.mb, self.position_axis, (1, kernel - 1, width)
        whole = mb.concat(values=[self.load(self._kept(state, shape)), x], axis=axis)
        taps = self.store.vector(f"{name}.weight").T
        parts = [
            mb.mul(
                x=self._part(whole, axis, i, i + 1 - kernel),
                y=self._const(self._shape_vector(taps[i : i + 1]), f"{mil_name(name)}_{i}"),
            )
            for i in range(kernel)
        ]
        out = parts[0]
        for part in parts[1:]:
            out = mb.add(x=out, y=part)
        self._keep(state, self._rows(self._part(whole, axis, 1 - kernel, 0)), shape)
        return out

    def _part(self, x: X, axis: int, begin: int, end: int) -> X:
        """From `begin` to `end` along one axis; an end of 0 is the axis's own."""
        begins, ends = [0] * x.rank, [0] * x.rank
        begins[axis], ends[axis] = begin, end
        mask = [other != axis or end == 0 for other in range(x.rank)]
        return self.mb.slice_by_index(x=x, begin=begins, end=ends, end_mask=mask)

    def _kept(self, state: str, shape: tuple[int, ...]) -> X:
        """A replaced state as the last call left it."""
        begin, end = self._lines(state, shape)
        held = self.mb.read_state(input=self.inputs["replaced"])
        return self.mb.reshape(x=self.mb.slice_by_index(x=held, begin=begin, end=end), shape=list(shape))

    def _keep(self, state: str, value: X, shape: tuple[int, ...]) -> None:
        """Replace a state by a value of that shape."""
        mb, (begin, end) = self.mb, self._lines(state, shape)
        lines = mb.reshape(x=value, shape=[1, 1, end[2] - begin[2], end[3]])
        new = mb.slice_update(x=mb.read_state(input=self.inputs["replaced"]), update=lines, begin=begin, end=end)
        mb.coreml_update_state(state=self.inputs["replaced"], value=new)

    def _lines(self, state: str, shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
        """Where a state of that shape begins and ends in the packed one."""
        assert self.cache is not None, "a decoder needs a cache"
        packed, first = self.cache.places[state]
        width = self.cache.packed[packed][3]
        return [0, 0, first, 0], [1, 1, first + math.prod(shape) // width, width]

    def _end(self) -> X:
        """Positions in the cache after this call, (1,)."""
        assert self.cache is not None
        shape = self.mb.shape(x=self.inputs[self.cache.mask])
        return self.mb.slice_by_index(x=shape, begin=[3], end=[4], name="end")


def mil_name(name: str) -> str:
    """MIL identifiers hold no dots."""
    return name.replace(".", "_")
