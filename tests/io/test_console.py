"""What commands print: on a terminal, into files, in old encodings; and what long work says without a terminal."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.io.console import QUIET_SECONDS, note, prepare_streams, progress_bar, table, write, write_json

ANSWER = "模型 says 🐈 naïve"
HOSTILE = "red\x1b[31m \x9b2J\a\r\u202egnp.\0 \tend\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def stdout(monkeypatch: pytest.MonkeyPatch, encoding: str) -> io.BytesIO:
    """A standard output of that encoding, as a pipe or file is."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
    prepare_streams()
    return raw


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", ANSWER.encode()),
        ("cp1252", b"\\u6a21\\u578b says \\U0001f408 na\xefve"),
        ("latin-1", b"\\u6a21\\u578b says \\U0001f408 na\xefve"),
        ("ascii", b"\\u6a21\\u578b says \\U0001f408 na\\xefve"),
        ("gbk", "模型".encode("gbk") + b" says \\U0001f408 na\\xefve"),
    ],
)
def test_what_an_encoding_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch, encoding: str, expected: bytes) -> None:
    raw = stdout(monkeypatch, encoding)
    write(ANSWER, end="")
    assert raw.getvalue() == expected


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_a_file_name_that_is_not_utf_8_comes_out_as_it_is_on_disk(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    raw = stdout(monkeypatch, encoding)
    write(b"out-\xff\xfe/b".decode("utf-8", "surrogateescape"))
    write("\ud83d")  # half a character of another origin
    assert raw.getvalue() == b"out-\xff\xfe/b\n\\ud83d\n"


@given(st.text(st.characters(exclude_categories=[])), st.sampled_from(["utf-8", "cp1252", "ascii", "utf-16", "gbk"]))
def test_json_is_json_in_every_encoding(text: str, encoding: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        raw = stdout(monkeypatch, encoding)
        write_json({"answer": text})
        assert json.loads(raw.getvalue().decode(encoding)) == {"answer": text}


def test_a_terminal_gets_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    write(HOSTILE, end="")
    assert terminal.getvalue() == "red\\x1b[31m \\x9b2J\\x07\\r\\u202egnp.\\x00 \tend\n"


def test_a_file_gets_an_answer_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = stdout(monkeypatch, "utf-8")
    write(HOSTILE, end="")
    assert raw.getvalue() == HOSTILE.encode()


def test_messages_have_no_control_characters_and_cells_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    note(f"left out: {HOSTILE}")
    assert capsys.readouterr().err == "left out: red\\x1b[31m \\x9b2J\\x07\\r\\u202egnp.\\x00 \tend\n\n"
    assert table([("name\nGate passed.", "1"), ("b", "22")]) == "  name\\nGate passed.   1\n  b                   22"


# --- progress ----------------------------------------------------------------------------------------------


def test_without_a_terminal_long_work_says_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    with progress_bar(lambda: now) as progress:
        for step in range(1000):
            progress("calibrate", step, 1000)
            now += 0.125
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"calibrate: {step} of 1000" for step in (240, 480, 720, 960)] and QUIET_SECONDS == 30


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as progress:
        for step in range(100):
            progress("write", step, 100)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal: Any = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar() as progress:
        progress("write [bold]\x1b[31m", 1, 2)
    assert "write [bold]\\x1b[31m" in terminal.getvalue()
