"""Expressions of tokenizers: those of real models are accepted, and what is accepted is fast in the library itself."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from edgevlm.inputs.expressions import is_fast

SOURCES = Path(transformers.__file__).parent
# Of models whose files transformers does not write itself: DeepSeek's, BLOOM's, Falcon's, Kimi K2's, GPT-4o's.
REAL = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"""
    r"""\s*[\r\n]+|\s+(?!\S)|\s+""",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"\p{N}{1,3}",
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕ]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    r"[\r\n]",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r"[0-9][0-9][0-9]",
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{M}&&[^\p{Han}]]+(?i:'s|'t)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{M}&&[^\p{Han}]]*(?i:'s|'t)?|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)


def theirs() -> set[str]:
    """What transformers' own tokenizers and converters write into Regex(...)."""
    found = set()
    for path in (SOURCES / "convert_slow_tokenizer.py", *SOURCES.glob("models/*/tokenization_*.py")):
        text = path.read_text("utf-8")
        quoted = r"r?(?:\"\"\"(?P<a>.*?)\"\"\"|\"(?P<b>[^\"\n]*)\")"
        for match in re.finditer(r"(?:Regex\(\s*|PRETOKENIZE_REGEX = )" + quoted, text, re.S):
            found.add(match["a"] or match["b"])
    return found - {None, ""}


def test_the_expressions_of_transformers_are_accepted() -> None:
    found = theirs()
    assert len(found) >= 12 and any(r"(?i:'s|'t|'re" in e for e in found)
    assert [e for e in found if not is_fast(e)] == []


@pytest.mark.parametrize("expression", REAL)
def test_the_expressions_of_models_are_accepted(expression: str) -> None:
    assert is_fast(expression)


@pytest.mark.parametrize(
    "expression",
    [r"(a+)+$", r"(?:a|a)+$", r"(a|aa)*b", r"([a-z_.0-9]+)+$x", r"a*a*b", r"a+b", r"[\s\S]*\x00", r"(a*)*", r"x*y*z",
     r"(?:a+)?b(?:a+)?c", r"(.)\1", r"\g<0>?a", r"(?:a{1000}){1000}", "a?" * 30 + "a" * 30, r"(?=a+b)c", r"a**",
     r"(?>a+)+b", r"\s+(?!\S)", r"(?:x+x+)+y", "[]a]", "(", ")", "[a", "a)", r"a{1,3}+", r"(?#c)", r"(?~a)", r"(?<n>a)",
     r"\K", r"\R+", r".*.*.*=", r"a*b|a|a+", r"\s*[\r\n]+|\s|\s+", "a{999}", "a{3,2}", "|" * 5000, "*a", "\\"],
)  # fmt: skip
def test_other_forms_are_not(expression: str) -> None:
    assert not is_fast(expression)


ATOM = st.sampled_from(
    [
        "a",
        "b",
        " ",
        ".",
        r"\s",
        r"\S",
        r"\p{L}",
        "[ab]",
        "[^a]",
        r"[\s\S]",
        "(?:a|b)",
        "(?:a+|b)",
        "(?!a)",
        "$",
        "^",
        r"\b",
    ]
)
PIECE = st.tuples(ATOM, st.sampled_from(["", "", "?", "*", "+", "{2}", "{1,3}", "{2,}", "*?", "++"])).map("".join)
EXPRESSION = st.lists(st.lists(PIECE, min_size=1, max_size=4).map("".join), min_size=1, max_size=4).map("|".join)


@given(EXPRESSION)
@settings(max_examples=60, deadline=None)
def test_what_is_accepted_is_fast(expression: str) -> None:
    """In Oniguruma, on runs that make backtracking expressions take minutes or give up."""
    if not is_fast(expression):
        return
    try:
        split = pre_tokenizers.Split(Regex(expression), "removed")
    except Exception:  # such as a repeated anchor: refused when the file is read
        return
    for text in ("a" * 20_000, " " * 20_000, "ab" * 10_000, "a" * 20_000 + "!", "a " * 10_000 + "\n"):
        start = time.process_time()
        split.pre_tokenize_str(text)  # a run given up would be a panic, which is a BaseException
        assert time.process_time() - start < 0.5, text[:9]
