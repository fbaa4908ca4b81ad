"""Only regular files are opened, at once, and read whole only up to a size."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevlm.bundle.manifest import open_bundle
from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.errors import EdgeVLMError
from edgevlm.export.calibrate.data import read_source
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.io.regular import check_regular, open_regular, read_lines, read_regular
from edgevlm.io.text import check_place


def test_a_regular_file_and_a_link_to_one_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("a")
    for name in ("a", "link"):
        assert read_regular(tmp_path / name, 3, "scale it down") == b"abc"
        with open_regular(tmp_path / name) as stream:
            assert stream.read() == b"abc" and not os.get_inheritable(stream.fileno())
        assert check_regular(tmp_path / name).st_size == 3


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    kinds = {
        tmp_path / "pipe": "a named pipe",
        tmp_path / "socket": "a socket",
        tmp_path: "a folder",
        Path("/dev/zero"): "a device",
    }
    for path, kind in kinds.items():
        for call in (check_regular, open_regular, lambda path: read_regular(path, 9, "")):
            with pytest.raises(EdgeVLMError, match=f"is {kind}, expected a regular file: give the file itself"):
                call(path)
    server.close()


def test_a_file_replaced_by_a_pipe_between_the_two_looks_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    regular = os.stat_result((stat.S_IFREG | 0o644, *[0] * 9))
    monkeypatch.setattr("edgevlm.io.regular.os.stat", lambda path: regular)
    with pytest.raises(EdgeVLMError, match="is a named pipe"):
        open_regular(tmp_path / "pipe")


def test_too_much_is_refused_and_not_read(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(EdgeVLMError, match="larger than 1000 bytes, too large for what it should be: download it"):
        read_regular(sparse, 1000, "download it again")
    with pytest.raises(EdgeVLMError, match="larger than 10 bytes"):  # /proc says that its files have no bytes
        read_regular(Path("/proc/self/status"), 10, "download it again")


def test_a_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "nothing", 9, "")


def test_lines_come_one_at_a_time_and_cut_where_they_are_too_long(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"ab\n\nabc\nabcdefghij\nxyz\nabcd")
    assert list(read_lines(tmp_path / "a", 3)) == [b"ab\n", b"\n", b"abc\n", b"abcd", b"xyz\n", b"abcd"]
    assert list(read_lines(tmp_path / "a", 99))[-2:] == [b"xyz\n", b"abcd"]


@pytest.mark.parametrize(
    "call",
    [
        check_place,
        open_bundle,
        lambda path: open_checkpoint(str(path)),
        lambda path: read_source(str(path)),
        lambda path: export_model(ExportOptions("default", path)),
    ],
)
def test_names_that_are_not_utf8_are_refused_in_one_sentence(tmp_path: Path, call: Callable[[Path], object]) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xffdel"))
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(EdgeVLMError, match="is no text in utf-8, so that engines cannot open it: choose another name"):
        call(folder)
