"""A tensor's dtype and shape, as components and manifests declare it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tensor:
    """Free axes have names, which mean one size wherever they occur in a component."""

    dtype: str  # of numpy: "float32", "int64", "bool"
    shape: tuple[int | str, ...]

    def sizes(self, free: int) -> tuple[int, ...]:
        """The shape with `free` in the place of every free axis."""
        return tuple(free if isinstance(axis, str) else axis for axis in self.shape)
