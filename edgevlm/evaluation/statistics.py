"""The mean of many scores with its confidence interval; the difference of two runs over the same questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Z = 1.959963984540054  # two-sided 95 %
LEVEL = 0.05  # a difference that chance gives more often than this cannot be told from none
FEWEST = 6  # questions that can tell a difference at all: if all six rise, chance has 2 / 2^6


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


@dataclass(frozen=True)
class Difference:
    """Two runs over the same `n` questions: how much higher the second scores, with a 95 % interval, all -1 to 1.

    first, second: mean scores over these questions. p: how often chance alone gives a difference as one-sided.
    """

    first: float
    second: float
    low: float
    high: float
    p: float
    n: int

    @property
    def mean(self) -> float:
        return self.second - self.first

    @property
    def told(self) -> bool:
        """Whether test and interval agree that the difference is no chance."""
        return self.p < LEVEL and not self.low <= 0 <= self.high


def paired_difference(first: Mapping[str, float], second: Mapping[str, float]) -> Difference | None:
    """The difference over the questions that both mappings {question: score in 0..1} have; None where there are none.

    The test is the exact sign test on questions that score differently, which for right and wrong answers is McNemar's
    exact test. The interval is Bonett and Price's (2012, doi 10.3102/1076998611411915), with sums of rises and of
    falls in place of counts: it keeps a width where no question, or every one, differs.
    """
    both = first.keys() & second.keys()
    if not both:
        return None
    n = len(both)
    changes = [second[key] - first[key] for key in both]
    rise, fall = ((math.fsum(max(sign * c, 0.0) for c in changes) + 1) / (n + 2) for sign in (1, -1))
    half = Z * math.sqrt(max(rise + fall - (rise - fall) ** 2, 0.0) / (n + 2))
    p = sign_test(sum(c > 0 for c in changes), sum(c < 0 for c in changes))
    one, other = (math.fsum(scores[key] for key in both) / n for scores in (first, second))
    return Difference(one, other, max(-1.0, rise - fall - half), min(1.0, rise - fall + half), p, n)


def sign_test(ups: int, downs: int) -> float:
    """The two-sided p of so many ups and downs where each was as likely: 2 P(X <= the fewer), at most 1."""
    total, fewer = ups + downs, min(ups, downs)
    logs = (math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(fewer + 1))
    return min(1.0, 2 * math.fsum(math.exp(log - total * math.log(2)) for log in logs))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjustment for looking at several differences at once, in the order given."""
    adjusted, greatest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        greatest = max(greatest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = greatest
    return adjusted
