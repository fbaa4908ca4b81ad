"""Stop strings across the borders of tokens, against what the definition says of the whole text."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from edgevlm.generate.reader import Reader


class Pieces:
    """A stream whose tokens are the numbers of given pieces; the last comes at its end, as half a character does."""

    def __init__(self, pieces: list[str], rest: str = "") -> None:
        self.pieces, self.rest = pieces, rest

    def push(self, token: int) -> str:
        return self.pieces[token]

    def finish(self) -> str:
        return self.rest


def read(pieces: list[str], stop: list[str], rest: str = "", lead: str | None = None) -> tuple[list[str], bool]:
    reader, shown = Reader(Pieces(pieces, rest), stop, lead), []  # type: ignore[arg-type]
    for token in range(len(pieces)):
        shown.append(reader.push(token))
        if reader.stopped:
            break
    return [*shown, reader.finish()], reader.stopped


def cut(text: str, stop: list[str]) -> str | None:
    """The text up to the stop string that is complete first, the longest of those; None where there is none."""
    for end in range(len(text) + 1):
        if ending := [each for each in stop if text[:end].endswith(each)]:
            return text[: end - max(map(len, ending))]
    return None


TEXT = st.text("ab \n", max_size=12)


@given(st.lists(TEXT, max_size=6), st.lists(st.text("ab \n", min_size=1, max_size=5), max_size=4), TEXT)
@example(["ab", "c"], ["abcd", "bc"], "")
@example(["a", "b", "c", "d"], ["abcd", "bc"], "")
@example(["  \n", " a"], ["\n"], "")
def test_pieces_end_where_the_whole_text_does(pieces: list[str], stop: list[str], rest: str) -> None:
    shown, stopped = read(pieces, stop, rest)
    whole = ("".join(pieces) + rest).lstrip()
    ended = cut(whole, stop)
    assert "".join(shown) == (whole if ended is None else ended)
    assert stopped == (ended is not None)
    # What was shown is never taken back, and nothing is held without reason: it may be the beginning of a stop string.
    before = ["".join(shown[:count]) for count in range(len(shown) + 1)]
    for count, (text, longer) in enumerate(pairwise(before)):
        assert longer.startswith(text)
        come = "".join(pieces[:count]).lstrip()
        if cut(come, stop) is None and count < len(shown) - 1:
            held = come[len(text) :]
            assert held == "" or any(each.startswith(held) and each != held for each in stop)


def test_only_what_is_left_out_is_left_out() -> None:
    assert read(["  ", "\na"], [], lead=" ") == (["", "\na", ""], False)
    assert read(["  ", "\na"], []) == (["", "a", ""], False)
