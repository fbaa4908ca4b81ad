"""Text on its way to terminals and into JSON, for every text there is."""

from __future__ import annotations

import ast
import json
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from edgevlm.io.text import json_text, printable

ANY = st.text(st.characters(exclude_categories=[]))  # lone surrogates, too


@given(ANY, st.sampled_from(["", "\n\t"]))
def test_nothing_that_a_terminal_obeys_is_left(text: str, keep: str) -> None:
    shown = printable(text, keep)
    shown.encode("utf-8")
    for char in shown:
        assert char in keep or unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp")
        assert unicodedata.bidirectional(char) not in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


@given(ANY)
def test_escapes_are_pythons_and_all_else_stays(text: str) -> None:
    text = text.replace("\\", "").replace("'", "")
    assert ast.literal_eval(f"'{printable(text)}'") == text


def test_words_of_every_script_are_as_they_were() -> None:
    for words in ("模型 是 什么？", "نعم", "שלום", "naïve café — “quoted”", "👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "e\u0301"):
        assert printable(words) == words
    assert printable("\x1b[31mred\x1b[0m\r\n\u202egnp.exe") == r"\x1b[31mred\x1b[0m\r\n\u202egnp.exe"


@given(st.dictionaries(ANY, ANY | st.integers() | st.lists(ANY)))
def test_json_survives_every_encoding_of_unicode(value: object) -> None:
    assert json.loads(json_text(value).encode("utf-8")) == value


def test_json_stays_readable() -> None:
    assert json_text({"answer": "模型 \ud83d"}) == '{"answer": "模型 \\ud83d"}'
