"""Renames: none replaces by accident, with the system's own calls and without them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgevlm.io import renames
from edgevlm.io.renames import exchange, rename_free, rename_new


@pytest.fixture(params=["system", "without"])
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without":
        monkeypatch.setattr(renames, "_call", lambda: None)


def make(path: Path, kind: str) -> Path:
    if kind == "file":
        path.write_text(path.name)
    elif kind != "nothing":
        path.mkdir()
    if kind == "folder":
        (path / "in").write_text(path.name)
    return path


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("there", ["nothing", "file", "folder", "empty"])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_rename_replaces_nothing_but_an_empty_folder(what: str, there: str, tmp_path: Path) -> None:
    source, target = make(tmp_path / "source", what), make(tmp_path / "target", there)
    if there == "nothing" or (what, there) == ("folder", "empty"):
        rename_new(source, target)
        assert (target if what == "file" else target / "in").read_text() == "source" and not source.exists()
        return
    with pytest.raises(FileExistsError):
        rename_new(source, target)
    assert source.exists() and target.is_dir() == (there != "file")
    assert there == "empty" or (target if there == "file" else target / "in").read_text() == "target"
    assert rename_free(source, target) == tmp_path / "target-2" and (tmp_path / "target-2").exists()


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="this system has no exchange")
def test_two_folders_swap_names(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one", "folder"), make(tmp_path / "other", "folder")
    assert exchange(one, other)
    assert ((one / "in").read_text(), (other / "in").read_text()) == ("other", "one")
    with pytest.raises(FileNotFoundError):
        exchange(one, tmp_path / "missing")


def test_a_system_without_an_exchange_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = make(tmp_path / "one", "folder"), make(tmp_path / "other", "folder")
    monkeypatch.setattr(renames, "_call", lambda: None)
    assert not exchange(one, other) and (one / "in").read_text() == "one"
