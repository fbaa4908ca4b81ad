"""What a decoder keeps between calls, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgevlm.types import F32


@dataclass
class States:
    """Arrays by state name. Growing ones (kv heads, positions, head size) can be cut; replaced ones cannot."""

    growing: dict[str, F32] = field(default_factory=dict)
    replaced: dict[str, F32] = field(default_factory=dict)
    memory: dict[str, F32] = field(default_factory=dict)

    def append(self, name: str, x: F32) -> F32:
        """Append x along the positions; returns the whole state."""
        if name in self.growing:
            x = np.concatenate([self.growing[name], x], axis=-2)
        self.growing[name] = x
        return x

    def fork(self) -> States:
        """The same states, to go on from without changing these: no array is changed in place."""
        return States(dict(self.growing), dict(self.replaced), dict(self.memory))

    def cut(self, length: int) -> None:
        """Forget positions from `length` on; 0 forgets everything."""
        if length == 0:
            self.growing.clear()
            self.replaced.clear()
            self.memory.clear()
        for name, held in self.growing.items():
            self.growing[name] = held[..., :length, :]
