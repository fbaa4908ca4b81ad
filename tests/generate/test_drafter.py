"""Drafts against the rule's own words: look through everything for the last tokens, longest run first, latest first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgevlm.generate.drafter import LENGTHS, LONGEST, LONGEST_PAUSE, SHORTEST, Drafter, Pace

TOKENS = st.lists(st.integers(0, 3), max_size=40)


def by_search(ids: list[int], count: int, never: set[int]) -> list[int]:
    for size in range(LONGEST, SHORTEST - 1, -1):
        for start in reversed(range(len(ids) - size)):
            if ids[start : start + size] == ids[-size:]:
                written = list(ids)
                for at in range(count):
                    if written[start + size + at] in never:
                        break
                    written.append(written[start + size + at])
                return written[len(ids) :]
    return []


@given(TOKENS, TOKENS, st.integers(1, 12), st.sets(st.integers(0, 3), max_size=2))
def test_drafts_are_what_a_search_finds(prompt: list[int], answer: list[int], count: int, never: set[int]) -> None:
    drafter = Drafter(prompt, never)
    for end in range(len(answer) + 1):
        assert drafter.draft(count) == by_search(prompt + answer[:end], count, never)
        if end < len(answer):
            drafter.push(answer[end])
    assert drafter.ids == prompt + answer


def test_a_period_goes_on() -> None:
    assert Drafter([5, 1, 2, 3, 1, 2, 3]).draft(7) == [1, 2, 3, 1, 2, 3, 1]


@given(st.lists(st.integers(0, 7), max_size=60), st.integers(0, 12))
def test_a_draft_is_a_rung_that_fits(results: list[int], room: int) -> None:
    pace = Pace()
    for right in results:
        length = pace.length(room)
        assert length in (0, *LENGTHS) and length <= room
        if length:
            pace.judge(min(right, length), length)


def test_drafts_grow_where_they_are_right_and_pause_where_they_are_not() -> None:
    pace = Pace()
    assert pace.length(99) == LENGTHS[0]
    pace.judge(LENGTHS[0], LENGTHS[0])
    assert pace.length(99) == LENGTHS[1]
    pauses = []
    for _ in range(8):
        pace.judge(0, LENGTHS[1])
        pauses.append(next(wait for wait in range(99) if pace.length(99)))
    assert pauses == [1, 2, 4, 8, 16, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]
    pace.judge(LENGTHS[0] - 1, LENGTHS[0])
    assert pace.length(99) == LENGTHS[0]
