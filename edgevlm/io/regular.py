"""Opens files that come from outside: regular ones only, so that no pipe or device can hang or flood the program."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

from edgevlm.errors import EdgeVLMError

MARK = b"\xef\xbb\xbf"  # UTF-8's byte order mark, with which some editors of Windows begin each file

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_regular(path: Path) -> os.stat_result:
    """What is known of a regular file, before an engine opens it by its name.

    Raises EdgeVLMError for anything else, OSError where there is nothing.
    """
    return _checked(path, os.stat(path))


def open_regular(path: Path, *, buffering: int = -1) -> BufferedReader:
    """The file opened for reading bytes. Raises as `check_regular`."""
    check_regular(path)  # some devices act when they are opened
    return cast(BufferedReader, open(path, "rb", buffering=buffering, opener=_open_at_once))


def read_regular(path: Path, largest: int, advice: str) -> bytes:
    """The whole file. Raises as `check_regular`, and EdgeVLMError if it has over `largest` bytes.

    advice: what to do then, at the end of the message.
    """
    with open_regular(path) as stream:
        data = stream.read(largest + 1) if os.fstat(stream.fileno()).st_size <= largest else b""
        if len(data) > largest or stream.read(1):
            raise EdgeVLMError(f"'{path}' is larger than {largest} bytes, too large for what it should be: {advice}.")
    return data


def read_lines(path: Path, longest: int) -> Iterator[bytes]:
    """The lines of a text that a user wrote, as `lines_of` gives them. Raises as `check_regular`."""
    with open_regular(path) as stream:
        yield from lines_of(stream, longest)


def lines_of(stream: BinaryIO, longest: int) -> Iterator[bytes]:
    """The lines of a text, one at a time, each with its line feed, without the byte order mark of Windows' editors.

    Of a line with over `longest` bytes come the first `longest` + 1.
    """
    mark = MARK
    while line := stream.readline(longest + 1):
        yield line.removeprefix(mark)
        mark = b""
        while len(line) > longest and not line.endswith(b"\n"):
            line = stream.readline(longest + 1)


def _open_at_once(path: str, flags: int) -> int:
    """Without waiting for a pipe's other end, and without making a terminal this process's own."""
    file = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
    try:
        _checked(path, os.fstat(file))  # it may have been replaced since it was looked at
    except BaseException:
        os.close(file)
        raise
    return file


def _checked(path: Path | str, found: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no file")
        raise EdgeVLMError(f"'{path}' is {kind}, expected a regular file: give the file itself.")
    return found
