"""Differences of paired scores, against scipy's tests and published figures."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm.evaluation.statistics import holm, paired_difference, sign_test


@settings(deadline=None)  # the first example imports scipy
@given(st.integers(0, 300), st.integers(0, 300))
def test_the_sign_test_is_scipy_s(ups: int, downs: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is an oracle here")
    expected = stats.binomtest(ups, ups + downs).pvalue if ups + downs else 1.0
    assert sign_test(ups, downs) == pytest.approx(expected, rel=1e-9)


def test_the_interval_is_the_published_one() -> None:
    """The example of Fagerland, Lydersen and Laake 2014 (doi 10.1002/sim.6148): of 21 patients 1 before and after, 1
    only before, 7 only after, 12 never. The interval is ((c + 1) - (b + 1)) / (n + 2) and its error, as published."""
    before = {f"q{i}": float(i < 2) for i in range(21)}
    after = {f"q{i}": float(i == 0 or 2 <= i < 9) for i in range(21)}
    found = paired_difference(before, after)
    assert found is not None and found.n == 21
    assert found.mean == pytest.approx(6 / 21)
    half = 1.959964 * math.sqrt((10 / 23 - (6 / 23) ** 2) / 23)
    assert (found.low, found.high) == pytest.approx((6 / 23 - half, 6 / 23 + half))
    assert found.p == pytest.approx(0.0703125), "McNemar's exact test, the same source"
    assert not found.told


def test_few_questions_tell_nothing() -> None:
    """From n = 2 no report may say +100."""
    for n in range(1, 6):
        found = paired_difference({str(i): 0.0 for i in range(n)}, {str(i): 1.0 for i in range(n)})
        assert found is not None and found.mean == 1.0 and not found.told, n
    six = paired_difference({str(i): 0.0 for i in range(6)}, {str(i): 1.0 for i in range(6)})
    assert six is not None and six.told
    assert paired_difference({"a": 1.0}, {"b": 1.0}) is None


SCORES = st.dictionaries(st.integers(0, 60).map(str), st.floats(0, 1, allow_subnormal=False), max_size=60)


@given(SCORES, SCORES)
def test_differences_are_sound(first: dict[str, float], second: dict[str, float]) -> None:
    found, back = paired_difference(first, second), paired_difference(second, first)
    if found is None or back is None:
        assert not first.keys() & second.keys() and found is back
        return
    assert -1 <= found.low < found.high <= 1 and 0 < found.p <= 1
    assert (found.mean, found.low, found.p) == pytest.approx((-back.mean, -back.high, back.p))
    assert found.told == back.told
    assert not found.told or found.low * found.high > 0
    same = paired_difference(first, first)
    assert same is not None and same.p == 1 and same.low < 0 < same.high


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order_and_only_raises(values: list[float]) -> None:
    found = holm(values)
    assert all(value <= raised <= 1 for value, raised in zip(values, found, strict=True))
    raised = [found[i] for i in sorted(range(len(values)), key=lambda i: values[i])]
    assert raised == sorted(raised)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
