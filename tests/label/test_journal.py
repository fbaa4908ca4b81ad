"""The journal of a run: torn anywhere it gives back the whole lines before, and goes on with its own run only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm.errors import EdgeVLMError
from edgevlm.label.journal import FORMAT, Journal, check_head, finished, head_line, journal_place, read_rows

HEAD: dict[str, Any] = {FORMAT: 1, "the question": "What?", "max_tokens": 4, "schema": None}


def row(name: str, answer: str | None = "yes", error: str | None = None) -> dict[str, Any]:
    return {"picture": name, "sha256": "00", "answer": answer, "error": error, "tokens": 1, "seconds": 0.5}


ROWS = [row("a.png"), row("ü/ж.png", 'x\n"{'), row("c \udcff.png", None, "The image is damaged."), row("d")]


def write(path: Path, rows: list[dict[str, Any]], head: dict[str, Any] = HEAD, **settings: Any) -> Journal:
    journal = Journal(path, head, path.with_name("scratch"), **settings)
    for each in rows:
        journal.write(each)
    journal.close()
    return journal


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("journal") / "j"
    journal = write(path, ROWS)
    assert (journal.count, journal.errors) == (4, 1)
    assert list(read_rows(path)) == ROWS and "a.png" in journal and "b.png" not in journal
    return path.read_bytes()


def test_torn_at_every_byte(whole: bytes, tmp_path: Path) -> None:
    """Every beginning of the file, with the zeros that a lost machine may leave behind it: the rows before are there,
    and the others can be written again."""
    path = tmp_path / "j"
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    for length in range(len(whole) + 1):
        kept = ROWS[: max(0, sum(end <= length for end in ends) - 1)]
        for tail in (b"", b"\0" * 7) if length % 5 == 0 and length not in ends and length > ends[0] else (b"",):
            path.write_bytes(whole[:length] + tail)
            assert write(path, []).count == len(kept)
            assert list(read_rows(path)) == kept
            write(path, ROWS)
            assert path.read_bytes() == whole


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 2000), noise=st.binary(min_size=1, max_size=40))
def test_damage_in_the_middle_is_said_and_damage_at_the_end_is_dropped(
    place: int, noise: bytes, whole: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "j"
    place %= len(whole)
    path.write_bytes(whole[:place] + noise + whole[place:])
    try:
        journal = write(path, ROWS)
    except EdgeVLMError as error:
        assert len(str(error)) < 1000 and path.read_bytes() == whole[:place] + noise + whole[place:]
        return
    found = list(read_rows(path))
    assert len({each["picture"] for each in found}) == len(found) == journal.count >= 4


def test_another_run_is_refused_with_what_differs(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl.partial.jsonl"
    path.write_bytes(whole)
    for change, words in (
        ({"the question": "Which?"}, 'the question was "What?", now "Which?"'),
        ({"max_tokens": 5, "schema": "{}"}, 'max_tokens was 4, now 5; schema was null, now "{}"'),
        ({"the question": "\udcff" * 500}, 'the question was "What?", now "'),
        ({"new": 1}, "new was null, now 1"),
    ):
        with pytest.raises(EdgeVLMError) as error:
            write(path, [], HEAD | change)
        assert words in str(error.value) and "give the same command as then" in str(error.value)
        assert len(str(error.value)) < 1000
    assert path.read_bytes() == whole
    check_head(path, {**HEAD, "retries": 1}, HEAD)


@pytest.mark.parametrize("content", [b"mine", b"mine\n", b'{"edgevlm_eval": 1}\n', b'{"edgevlm_label": \n', b"[]\n"])
def test_a_file_of_somebody_else_is_kept(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(content)
    with pytest.raises(EdgeVLMError, match="is not what `edgevlm label` writes: move it away"):
        write(path, ROWS)
    assert path.read_bytes() == content
    path.write_bytes(b"")  # as good as none
    assert finished(path) is None
    path.unlink()
    path.mkdir()
    with pytest.raises(EdgeVLMError, match="is a folder"):
        head_line(path)


def test_a_picture_has_one_row_and_errors_can_be_forgotten(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(whole)
    journal = write(path, [row("a.png", "another answer"), row("e")])
    assert journal.count == 5 and [each["picture"] for each in read_rows(path)][-1] == "e"
    assert next(read_rows(path))["answer"] == "yes"
    journal = write(path, [row("c \udcff.png", "now")], retry_errors=True)
    assert (journal.count, journal.errors) == (5, 0)
    assert sorted(each["picture"] for each in read_rows(path)) == ["a.png", "c \udcff.png", "d", "e", "ü/ж.png"]


def test_the_last_line_of_a_finished_run_is_dropped_by_one_that_goes_on(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(whole)
    assert finished(path) is None and finished(tmp_path / "none") is None
    journal = Journal(path, HEAD, tmp_path / "scratch")
    journal.finish({"size": 3})
    journal.close()
    assert finished(path) == {"finished": {"size": 3}, "rows": 4, "errors": 1}
    assert json.loads(path.read_text().splitlines()[-1])["rows"] == 4
    write(path, [row("e")])
    assert finished(path) is None and [each["picture"] for each in read_rows(path)][-2:] == ["d", "e"]


def test_the_journal_lies_beside_the_real_table(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "there" / "t.jsonl")
    assert journal_place(tmp_path / "link.jsonl") == (tmp_path / "there").resolve() / "t.jsonl.partial.jsonl"
