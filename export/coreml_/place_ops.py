"""Positions in MIL: tables added to them, mixtures of rows, a position before the others."""

from __future__ import annotations

from edgevlm.export.coreml_.delta_ops import DeltaOps
from edgevlm.export.coreml_.state_ops import mil_name
from edgevlm.models.ops import X


class PlaceOps(DeltaOps):
    """As `MilOps`, which it is a part of."""

    def add_table(self, x: X, name: str, rows: int, width: int) -> X:
        table = self._const(self._shape_vector(self.store.vector(name)), f"{mil_name(name)}_table")
        return self.mb.add(x=x, y=table, name=mil_name(name))

    def add_mixed(self, x: X, name: str, rows: int, width: int, places: str, shares: str) -> X:
        table = self._const(self.store.vector(name), f"{mil_name(name)}_table")
        return self.mb.add(x=x, y=self._mixed(table, places, shares), name=mil_name(name))

    def mix(self, x: X, places: str, shares: str) -> X:
        return self._mixed(self.mb.squeeze(x=self._rows(x), axes=[0]), places, shares)

    def _mixed(self, table: X, places: str, shares: str) -> X:
        found = self.mb.gather(x=table, indices=self.inputs[places], axis=0)
        parts = self.mb.mul(x=found, y=self.mb.expand_dims(x=self.inputs[shares], axes=[2]))
        return self.load(self.mb.expand_dims(x=self.mb.reduce_sum(x=parts, axes=[1], keep_dims=False), axes=[0]))

    def prepend(self, x: X, name: str, width: int) -> X:
        return self.mb.concat(values=[self.vector(name, width), x], axis=self.position_axis)

    def drop_first(self, x: X) -> X:
        begin = [int(axis == self.position_axis) for axis in range(x.rank)]
        return self.mb.slice_by_index(x=x, begin=begin, end=[0] * x.rank, end_mask=[True] * x.rank)

    def add_shares(self, x: X, name: str, rows: int, width: int, shares: str) -> X:
        table = self._const(self.store.vector(name), f"{mil_name(name)}_table")
        resampled = self.mb.expand_dims(x=self.mb.matmul(x=self.inputs[shares], y=table), axes=[0])
        return self.mb.add(x=x, y=self.load(resampled), name=mil_name(name))
