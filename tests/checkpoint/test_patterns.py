"""Patterns of ranks and alphas: as peft's own matcher finds them, and in bounded time."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from edgevlm.checkpoint.patterns import BadPattern, compile_pattern

ATOMS = ["a", "b", ".", r"\.", "[ab]", "[^a]", r"\d", r"\w", r"\W", "[a-c0-1]", "^", "$", "(?:)", "x", "()", r"\S"]
QUANTIFIERS = ["*", "+", "?", "{2}", "{0,2}", "{1,}", "*?", "+?", "??", "{3}", "{0}"]


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, st.sampled_from(QUANTIFIERS)).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.tuples(inner, inner).map("|".join),
        inner.map(lambda one: f"({one})"),
    )


@settings(max_examples=150, deadline=None)
@given(st.recursive(st.sampled_from(ATOMS), larger, max_leaves=6), st.text("ab.x1_\n", max_size=7))
def test_fits_where_peft_finds_it(pattern: str, path: str) -> None:
    theirs = get_pattern_key([pattern], path) == pattern and bool(re.match(rf"(.*\.)?({pattern})$", path))
    assert compile_pattern(pattern)(path) == theirs


PATH = "model.language_model.layers.10.self_attn.q_proj"


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("q_proj", True), ("proj", False), ("layers.10.self_attn.q_proj", True), ("layers.1.self_attn.q_proj", False),
        (r"layers\.(1|10)\..*", True), (r".*\.[qkv]_proj", True), (r"layers\.[0-9]\..*", False),
        ("layers.*k_proj", False),
    ],
)  # fmt: skip
def test_names_of_modules(pattern: str, fits: bool) -> None:
    assert compile_pattern(pattern)(PATH) is fits


EXPLODING = ["([a-z_.0-9]+)+$x", "(a|a)*b", "(.*)*(.*)*x", "a{4000000000}", "(?:(?:a?){1000}){1000}", "(.*.*.*.*.*)!"]


@pytest.mark.parametrize("pattern", EXPLODING)
def test_no_pattern_takes_long(pattern: str) -> None:
    fits = compile_pattern(pattern)
    start = time.process_time()
    assert not fits(PATH * 4)
    assert time.process_time() - start < 1


BAD = {
    "(": "is no regular expression", "a{9999999999}": "is no regular expression", "(?i)q": "is no regular expression",
    "(" * 90 + ")" * 90 + "**": "is no regular expression", r"(q)\1": "refers back", "(?=q)q": "looks around",
    "(?i:q)": "sets flags", r"\bq": "borders of words", "a+" * 101: "has 202 characters",
    "(?>a)b": "forbids steps back",
}  # fmt: skip


@pytest.mark.parametrize("pattern", BAD)
def test_what_is_refused(pattern: str) -> None:
    with pytest.raises(BadPattern, match=re.escape(BAD[pattern])):
        compile_pattern(pattern)
