"""The mean of many scores, with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z = 1.959963984540054  # two-sided 95 %


def wilson(total: float, count: int) -> tuple[float, float]:
    """The 95 % score interval of a mean of `count` scores in 0..1 that add up to `total`.

    Wilson 1927, equation 4 of Newcombe 1998 (doi 10.1002/(SICI)1097-0258(19980430)17:8<857). For scores between 0 and
    1 it is too wide rather than too narrow: at a given mean, zeros and ones vary most. (0, 1) for no score.
    """
    if count == 0:
        return 0.0, 1.0
    mean = total / count
    centre = 2 * total + Z**2
    half = Z * math.sqrt(Z**2 + 4 * total * (1 - mean))
    low, high = ((centre + sign * half) / (2 * (count + Z**2)) for sign in (-1, 1))
    return max(0.0, min(low, mean)), min(1.0, max(high, mean))


def summary(scores: Sequence[float]) -> dict[str, float | int]:
    """Mean, interval and number of scores; a mean of 0 for none."""
    low, high = wilson(sum(scores), len(scores))
    mean = sum(scores) / len(scores) if scores else 0.0
    return {"score": mean, "low": low, "high": high, "n": len(scores)}
