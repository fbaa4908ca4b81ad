"""What commands print: on a terminal, into files, in old encodings; and what long work says without a terminal."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.io.console import (
    QUIET_SECONDS,
    meter,
    note,
    prepare_streams,
    progress_bar,
    span,
    table,
    write,
    write_json,
)

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


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.2, "0 s"), (89.4, "89 s"), (91, "2 min"), (5300, "88 min"), (5400, "1 h 30 min"), (172_000, "47 h 47 min"),
     (180_000, "2 d 2 h"), (8_640_000, "100 d 0 h")],
)  # fmt: skip
def test_a_duration_has_the_units_that_matter(value: float, words: str) -> None:
    assert span(value) == words


def test_a_meter_says_speed_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    """Of what this run did: 100 of the 500 rows were there before."""
    now = 0.0
    with meter("pictures", lambda: now) as show:
        show(100, 1000, 0, "0 errors")
        now = QUIET_SECONDS - 1
        show(200, 1000, 100, "1 error")
        now = QUIET_SECONDS + 10
        show(500, 1000, 400, "2 errors")
        show(501, 1000, 401, "2 errors")
    assert capsys.readouterr().err == "500 of 1000 pictures, 10 per second, 50 s left, 2 errors\n"


def test_a_meter_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, now = Terminal(), 10.0
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    with meter("pictures", lambda: now) as show:
        now = 20.0
        show(50, 50, 50, "[red]3\x1b errors")
    assert "50 of 50 pictures, 5 per second, [red]3\\x1b errors" in terminal.getvalue()
