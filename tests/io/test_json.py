"""JSON from strangers: one sentence for what is wrong with it, as json.loads for what is not."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits
from edgevlm.io.json import JsonFile, parse_json, read_json, read_json_file, read_object

TEXTS = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**300), 10**300) | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(VALUES, st.booleans())
def test_valid_json_is_read_as_python_reads_it(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text.encode()) == json.loads(text)


WRONG = {
    b"{": "Expecting property name",
    b"\xef\xbb\xbf{}": "it begins with a byte order mark",
    b'{"a": "\xff"}': "it is not UTF-8 text",
    '{"a": 1}'.encode("utf-16"): "it is not UTF-8 text",
    b"9" * 309: "a number has over 308 digits",
    b"[-" + b"9" * 5000 + b"]": "a number has over 308 digits",
    b"1e309": "the number 1e309 is larger than any",
    b"-1" + b"0" * 400 + b".5": "is larger than any",
    b"NaN": "NaN is no number of JSON",
    b'{"a": [-Infinity]}': "-Infinity is no number of JSON",
    b'{"a": 1, "b": 2, "a": 3}': "the key 'a' occurs twice in one object",
    b"[" * 100 + b"]" * 100: "nested more than 64 deep",
    b'{"a":' * 65 + b"1" + b"}" * 65: "nested more than 64 deep",
    b"[" * 100_000: "nested more than 64 deep",
    b'"\\ud800"': "half of a surrogate pair",
    b'{"\\uDFFF": 1}': "half of a surrogate pair",
    b'"\\ude00\\ud83d"': "half of a surrogate pair",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: ascii(text)[:30])
def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(ValueError, match=WRONG[text].replace("[", r"\[")):
        parse_json(text)
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(EdgeVLMError) as caught:
        read_json(tmp_path / "a.json", "download it again")
    message = str(caught.value)
    assert message.startswith(f"'{tmp_path / 'a.json'}' is not valid JSON (") and message.endswith("download it again.")
    assert "\n" not in message and len(message) < 400


def test_the_largest_that_is_taken() -> None:
    assert parse_json(b"9" * 308) == int("9" * 308) and math.isfinite(float(parse_json(b"9" * 308)))
    assert parse_json(b"[" * 64 + b"]" * 64)
    assert parse_json(b'"\\ud83d\\ude00"') == "\U0001f600"
    assert parse_json(b"[NaN, -Infinity]", finite=False)[1] == -math.inf  # stand in some models' config.json


def test_sizes_are_bounded_before_anything_is_parsed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it has over 100 bytes"):
        parse_json(b" " * 101, 100)
    with pytest.raises(ValueError, match="it holds too many objects and lists"):
        parse_json(b"[" + b"[]," * 33 + b"[]]", 1024)
    with (tmp_path / "huge.json").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(EdgeVLMError, match=f"larger than {limits.CONFIG_FILE} bytes"):
        read_object(tmp_path / "huge.json", "download it again")
    with pytest.raises(EdgeVLMError, match="is a device, expected a regular file"):
        read_json_file(Path("/dev/zero"))


# What takes the most memory for its size: empty objects, pairs, short strings, numbers.
DENSE = ["'{},' * (n // 40)", "'{\"\":0},' * (n // 40)", "'\"ab\",' * (n // 5)", "'1.5,' * (n // 4)"]


@pytest.mark.parametrize("filling", DENSE)
def test_memory_is_at_most_thirty_times_the_size(filling: str) -> None:
    """So that a text within the largest limit but a suite's, 64 MiB, stays under 2 GB."""
    n = 4 << 20
    script = (
        f"from edgevlm.io.json import parse_json\nn = {n}\n"
        f"text = ('[' + ({filling}).rstrip(',') + ']').encode()\nassert len(parse_json(text, n + 8)) > n // 50"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (30 * n + (60 << 20), -1))  # the interpreter takes 40 MB

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.parametrize("value", [None, [], "x", {}, 0, -1, 1.5, True, 1 << 31, 10**300])
def test_a_count_is_a_bounded_whole_number(value: Any) -> None:
    file = JsonFile(Path("config.json"), {"a": value})
    with pytest.raises(EdgeVLMError) as caught:
        file.count("a")
    assert str(caught.value) == (
        f"'config.json' has a = {repr(value)[:100]}, expected a whole number from 1 to 2147483647: take the file that "
        "the original model came with, or another model."
    )


def test_null_counts_as_absent() -> None:
    file = JsonFile(Path("c"), {"a": None})
    assert file.count("a", 3) == 3 and file.number("a", 0.5) == 0.5 and file.flag("a", True) and file.side("a", 7) == 7
    assert file.choice("a", 2, {2: "two"}) == "two" and not file.section("a").given and file.value("a", "x") == "x"
    for required in (file.count, file.number, file.triple, file.square, file.edge):
        with pytest.raises(EdgeVLMError, match="has a = None, expected"):
            required("a")
    with pytest.raises(EdgeVLMError, match="has b = nothing, expected"):
        file.count("b")


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30, 0, -1.5, True, "1", 10**400])
def test_a_number_is_positive_and_bounded(value: Any) -> None:
    file = JsonFile(Path("config.json"), {"a": value, "three": [1.0, 2, value]})
    with pytest.raises(EdgeVLMError, match=r"expected a positive number up to 1e\+18"):
        file.number("a")
    if value not in (0, -1.5):
        with pytest.raises(EdgeVLMError, match="expected three numbers"):
            file.triple("three")


def test_the_place_inside_a_file_and_its_own_names_stand_in_messages() -> None:
    file = JsonFile(Path("c"), {"text_config": {"lm_dim": "x", "rope": {"type": []}}}).section("text_config")
    with pytest.raises(EdgeVLMError, match=r"'c' has text_config\.lm_dim = 'x', expected a whole"):
        file.renamed(hidden_size="lm_dim").count("hidden_size")
    with pytest.raises(EdgeVLMError, match=r"'c' has text_config\.rope\.type = \[\], expected 'a'"):
        file.section("rope").choice("type", "a", {"a": "a"})
    assert file.without("rope").value("rope") is None
