"""The summary's sentences against tables with known statistics: what may be said, and what must not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_cases import answers, bench_json, eval_json, report_member, subject

from edgevlm.evaluation.statistics import paired_difference
from edgevlm.report.compare import FIRST, Compared, compare
from edgevlm.report.gather import Findings, Member
from edgevlm.report.words import difference_words, gains, lead, loses, untold


@pytest.fixture(scope="module")
def pair(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Member, Member]:
    folder = tmp_path_factory.mktemp("pair")
    return report_member(tiny_bundle, folder / "full"), report_member(tiny_bundle, folder / "small", "int4")


def compared(pair: tuple[Member, Member], *evals: dict[str, Any], benches: tuple[dict[str, Any], ...] = ()) -> Compared:
    return compare(Findings(pair, benches, evals, ()))


def said(c: Compared) -> str:
    row = c.others()[0]
    return " ".join([*lead(c), *loses(c, row), *gains(c, row), untold(c, row) or ""])


def test_a_loss_that_can_be_told(pair: tuple[Member, Member]) -> None:
    """Of 200 questions 30 fell and none rose: 30 / 202 -+ 1.96 sqrt((32 / 202 - (30 / 202)^2) / 202)."""
    c = compared(pair, eval_json("full", colour=answers(200, 180)), eval_json("small", colour=answers(200, 150)))
    words = said(c)
    assert "15.0 points of score over the same 200 questions: 75.0% against 90.0% (95% interval 9.8 to 19.9)." in words
    assert "small scores 15.0 points less than full." in words
    assert "15.0 points in colour." in words and "cannot be told" not in words


def test_a_gain_that_can_be_told(pair: tuple[Member, Member]) -> None:
    c = compared(pair, eval_json("full", colour=answers(200, 150)), eval_json("small", colour=answers(200, 180)))
    row = c.others()[0]
    assert "15.0 points of score" in " ".join(gains(c, row)) and not any("score" in words for words in loses(c, row))


def test_chance_is_called_chance(pair: tuple[Member, Member]) -> None:
    """100 against 98 of 200, the two sets of right ones apart by 4 questions: sign test 3 falls, 1 rise."""
    full, small = answers(200, 100), answers(200, 98) | {"q150": 1.0, "q0": 0.0}
    c = compared(pair, eval_json("full", colour=full), eval_json("small", colour=small))
    words = said(c)
    assert "With 200 questions, the score of small cannot be told apart from full's." in words
    assert "Its score cannot be told apart with the same 200 questions: 49.0% against 50.0%" in words
    assert "points in colour" not in words


def test_two_questions_say_nothing(pair: tuple[Member, Member]) -> None:
    """The fault that led here: "+100.0" from n = 2."""
    c = compared(pair, eval_json("full", text=answers(2, 0)), eval_json("small", text=answers(2, 2)))
    words = said(c)
    assert "100.0" not in words and "cannot be told apart with the same 2 questions" in words


def test_other_questions_are_not_compared(pair: tuple[Member, Member]) -> None:
    few = {f"q{i}": 1.0 for i in range(60)}
    c = compared(pair, eval_json("full", colour=answers(200, 30)), eval_json("small", colour=few))
    assert "over the 60 questions that both were asked: 100.0% against 50.0%" in said(c)
    c = compared(
        pair, eval_json("full", colour=answers(200, 30)), eval_json("small", colour=answers(60, 60, prefix="r"))
    )
    assert "Not known: it was asked none of the questions that full was asked." in said(c)
    old = eval_json("small", colour=answers(200, 30))
    del old["scores"]
    c = compared(pair, eval_json("full", colour=answers(200, 30)), old)
    assert "does not say which questions were asked" in said(c)
    assert "Not known: its score was not measured." in said(compared(pair, eval_json("full", colour=few)))


def test_times_are_compared_turn_by_turn_in_one_benchmark(pair: tuple[Member, Member]) -> None:
    turns = (1.0, 1.1, 0.9, 1.2, 1.0, 1.05)
    faster = subject("small", factors=[0.5 * turn for turn in turns])
    c = compared(pair, benches=(bench_json(subject("full", factors=turns), faster),))
    assert "2.0x sooner to the first token and 2.0x the tokens a second" in said(c)
    assert (
        (ratio := c.ratio(c.others()[0], FIRST)) is not None and ratio.median == pytest.approx(0.5) and ratio.turns == 6
    )
    mixed = subject(
        "small", factors=[turn * factor for turn, factor in zip(turns, (0.5, 2, 0.5, 2, 0.5, 2), strict=True)]
    )
    c = compared(pair, benches=(bench_json(subject("full", factors=turns), mixed),))
    assert "cannot be told apart from full's with 6 questions" in said(c) and "sooner" not in said(c)
    few = bench_json(subject("full", factors=turns[:5]), subject("small", factors=[0.1] * 5))
    assert "cannot be told apart from full's with 5 questions" in said(compared(pair, benches=(few,)))
    apart = (bench_json(subject("full", factors=turns)), bench_json(faster))
    words = said(compared(pair, benches=apart))
    assert "of another benchmark than full's: not compared" in words and "sooner" not in words


def test_several_bundles_are_adjusted_for_their_number(tiny_bundle: Path, tmp_path: Path) -> None:
    """6 falls of 6 changes have p = 0.031: told for one bundle, not for each of three."""
    names = ("full", "a", "b", "c")
    members = tuple(report_member(tiny_bundle, tmp_path / name, "fp32" if name == "full" else "int8") for name in names)
    runs = [eval_json(name, colour=answers(60, 30 if name == "full" else 24)) for name in names]
    one, three = (
        compare(Findings(members[:2], (), tuple(runs[:2]), ())),
        compare(Findings(members, (), tuple(runs), ())),
    )
    assert one.difference(one.others()[0]).told  # type: ignore[union-attr]
    assert not any(three.difference(row).told for row in three.others())  # type: ignore[union-attr]


SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40)


@settings(max_examples=60)
@given(SCORES, SCORES)
def test_no_sentence_names_a_difference_that_chance_gives(first: list[float], second: list[float]) -> None:
    one, other = ({f"q{i}": score for i, score in enumerate(scores)} for scores in (first, second))
    found = paired_difference(one, other)
    assert found is not None
    words = difference_words(found)
    assert ("cannot be told apart" in words) == (not found.told)
    assert f"{found.n} questions" in words
    assert found.told == bool(re.match(r"[+\u2212]\d", words))
    if sum(one[key] != other[key] for key in one.keys() & other.keys()) < 6:
        assert not found.told


def test_one_bundle_has_nothing_to_be_compared_with(pair: tuple[Member, Member]) -> None:
    words = " ".join(lead(compare(Findings(pair[:1], (), (), ()))))
    assert words.startswith("One bundle, full: ") and "nothing to compare it with" in words
