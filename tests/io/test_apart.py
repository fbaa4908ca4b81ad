"""Outputs that are inputs or one another, by whatever names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgevlm.errors import EdgeVLMError
from edgevlm.io.apart import check_apart


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder D with questions.jsonl, a link to it, a hard link, and the same again inside."""
    monkeypatch.chdir(tmp_path)
    Path("D").mkdir()
    Path("D/questions.jsonl").write_text("{}\n")
    Path("link").symlink_to("D")
    os.link("D/questions.jsonl", "hard")


@pytest.mark.parametrize("out", ["D", "./D", "link", "D/../D", "{here}/D"])
def test_the_same_folder(out: str, tmp_path: Path) -> None:
    with pytest.raises(EdgeVLMError, match=r"--out is '.*', which --data reads: choose another output"):
        check_apart([("--out", out.format(here=tmp_path))], [("--data", "D")])


@pytest.mark.parametrize("out", ["D/questions.jsonl", "link/questions.jsonl", "hard"])
def test_the_same_file(out: str) -> None:
    with pytest.raises(EdgeVLMError, match="which --data reads"):
        check_apart([("--out", out)], [("--data", "D/questions.jsonl")])


def test_a_file_of_an_inputs_folder() -> None:
    with pytest.raises(EdgeVLMError, match="a file of 'D', which --data reads: choose a file outside of it"):
        check_apart([("--out", "link/questions.jsonl")], [("--data", Path("D"))])
    check_apart([("--out", "D/new.jsonl")], [("--data", "D")])


def test_a_folder_that_holds_an_input() -> None:
    for out in (".", "link"):
        with pytest.raises(EdgeVLMError, match=f"--out '{out}' holds 'D/questions.jsonl', which --data reads"):
            check_apart([("--out", out)], [("--data", "D/questions.jsonl")])
    check_apart([("--out", "D/model")], [("--images", "D"), ("--data", "D/questions.jsonl")])


def test_two_outputs() -> None:
    with pytest.raises(EdgeVLMError, match=r"--out and --json are both 'X': give each a file of its own"):
        check_apart([("--out", "X"), ("--json", "D/../X")], [])
    check_apart([("--out", "X"), ("--json", "Y"), ("--more", None)], [("--data", None), ("MODEL", "o/w" * 300)])
