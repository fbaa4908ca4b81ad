"""Single output files: whole or not at all, and never in the place of something without permission."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgevlm.errors import EdgeVLMError
from edgevlm.io import files, renames
from edgevlm.io.claims import claimed, work_folder
from edgevlm.io.files import change_json, check_new, write_text, writing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced_with_force(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "é")
    assert path.read_bytes() == "é".encode() and path.stat().st_mode & 0o777 == 0o666 & ~umask()
    with pytest.raises(EdgeVLMError, match="already exists"):
        check_new(path)
    check_new(path, force=True)
    write_text(path, "new", force=True)
    assert path.read_text() == "new" and names(tmp_path) == ["a.json"]
    with pytest.raises(EdgeVLMError, match="is a folder"):
        check_new(tmp_path, force=True)
    with pytest.raises(EdgeVLMError, match="There is no folder"):
        check_new(tmp_path / "none" / "a.json")


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("system", ["renameat2", "none"])
def test_a_file_that_appears_meanwhile_is_kept(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if system == "none":
        monkeypatch.setattr(renames, "_call", lambda: None)
    path = tmp_path / "a.json"
    told = r"'.*a\.json' appeared while this ran, and was kept: .* '.*a\.json-2'"
    with pytest.raises(EdgeVLMError, match=told), writing(path) as new:
        new.write_text("new")
        path.write_text("mine")
    assert path.read_text() == "mine" and (tmp_path / "a.json-2").read_text() == "new"
    assert names(tmp_path) == ["a.json", "a.json-2"]
    write_text(tmp_path / "b.json", "b")
    assert (tmp_path / "b.json").read_text() == "b"


def test_an_empty_file_may_be_written_over(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    check_new(tmp_path / "a")
    write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new", force=True)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_pipes_and_streams_are_written_as_they_are(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    check_new(tmp_path / "pipe")
    write_text(tmp_path / "pipe", "through")
    reader.join()
    assert read == ["through"] and (tmp_path / "pipe").is_fifo()
    write_text(Path("/dev/null"), "x")
    assert not Path("/dev/null").is_file()
    code = "from pathlib import Path; from edgevlm.io.files import write_text; write_text(Path('/dev/stdout'), 'x')"
    with (tmp_path / "out").open("w") as stream:
        subprocess.run([sys.executable, "-c", code], stdout=stream, check=True)
    assert (tmp_path / "out").read_text() == "x"


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), writing(path, force=True) as new:
        new.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(tmp_path) == ["a"]


def test_what_a_killed_writer_left_is_removed_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = work_folder(tmp_path / "a")
    work.mkdir()
    (work / "new").write_text("half")
    write_text(tmp_path / "a", "whole")
    assert (tmp_path / "a").read_text() == "whole" and names(tmp_path) == ["a"]
    assert capsys.readouterr().err == "Removed what a stopped run had left of 'a': .a.edgevlm (new).\n"


def test_a_writer_waits_for_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, begun, done = tmp_path / "a", threading.Event(), threading.Event()

    def hold() -> None:
        with claimed(path):
            begun.set()
            done.wait(0.2)

    holder = threading.Thread(target=hold)
    holder.start()
    begun.wait()
    write_text(path, "text")
    holder.join()
    assert path.read_text() == "text"
    monkeypatch.setattr(files, "_PATIENCE", 0.1)
    with claimed(path), pytest.raises(EdgeVLMError, match=r"Another edgevlm \(process \d+\) is writing"):
        write_text(path, "text", force=True)


@pytest.mark.parametrize("length", [1, 200, 255])
def test_names_of_any_length(length: int, tmp_path: Path) -> None:
    write_text(tmp_path / ("n" * length), "text")
    assert names(tmp_path) == ["n" * length]


def test_a_settings_file_is_changed_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": {"b": 1, "c": 2}, "d": 3}')
    change_json(path, {"a": {"b": 5}, "e": 6})
    assert path.read_text() == '{\n  "a": {\n    "b": 5,\n    "c": 2\n  },\n  "d": 3,\n  "e": 6\n}\n'
