"""A stream of random choices that is the same on every machine and under every version of numpy.

numpy promises that of its bit generators and seed sequences, but not of `Generator`'s methods (NEP 19), so the few
that Scenes needs are here, in exact integer arithmetic or a single rounded operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
_POOL = 256


class Stream:
    """Random choices from a key of non-negative integers; streams with different keys are independent."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))
        self._pool: list[int] = []

    def _word(self) -> int:
        """53 random bits."""
        if not self._pool:
            self._pool = (self._bits.random_raw(_POOL) >> np.uint64(11)).tolist()
        return self._pool.pop()

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * (self._word() * 2.0**-53)

    def below(self, count: int) -> int:
        """An integer of 0 .. count - 1."""
        return (self._word() * count) >> 53

    def between(self, low: int, high: int) -> int:
        """An integer of low .. high, both included."""
        return low + self.below(high - low + 1)

    def chance(self, probability: float) -> bool:
        return self._word() * 2.0**-53 < probability

    def choice(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[int]) -> T:
        """One of `items`, each as likely as its whole-number weight."""
        left = self.below(sum(weights))
        for item, weight in zip(items, weights, strict=True):
            left -= weight
            if left < 0:
                return item
        raise ValueError("weights must not be negative")

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different items (all, where there are fewer), in random order."""
        rest = list(items)
        taken = []
        for _ in range(min(count, len(rest))):
            taken.append(rest.pop(self.below(len(rest))))
        return taken

    def shuffled(self, items: Sequence[T]) -> list[T]:
        return self.sample(items, len(items))

    def noise(self, *shape: int) -> npt.NDArray[np.int16]:
        """Near-normal noise, the sum of four bytes less its mean: mean 0, standard deviation about 148."""
        count = int(np.prod(shape))
        raw = np.frombuffer(self._bits.random_raw(-(-count // 2)).astype("<u8").tobytes(), np.uint8)
        sums = raw[: 4 * count].reshape(-1, 4).sum(1, dtype=np.int16)
        return np.asarray(sums.reshape(shape) - np.int16(510))
