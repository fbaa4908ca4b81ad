"""What a run has done so far: `OUT.partial.jsonl`, a line for each finished picture, which the next run goes on with.

Its first line says what was asked of which bundle. Lines are only ever added; each is in the system's hands when the
next begins, so that a killed process loses none, and on the disk after `EVERY` seconds, so that a lost machine loses
those at most. A line that was cut in the middle is dropped.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits
from edgevlm.io.files import real_place
from edgevlm.io.json import parse_json
from edgevlm.io.regular import check_regular
from edgevlm.io.renames import sync
from edgevlm.io.text import json_text

EVERY = 2.0  # seconds
FORMAT = "edgevlm_label"  # the first key of the first line, with the format's version
RETRIES = "retries"  # the key of a head that says which finished table is asked about again
_BEGINNING = b'{"' + FORMAT.encode() + b'"'
KEYS = {"picture", "sha256", "answer", "error", "tokens", "seconds"}  # of every row
Row = dict[str, Any]


def journal_place(out: Path) -> Path:
    place = real_place(out)
    return place.with_name(f"{place.name}.partial.jsonl")


class Journal:
    """The rows that are done. `count` and `errors` count them; `name in journal` says whether a picture has one."""

    def __init__(self, path: Path, head: Row, scratch: Path, *, retry_errors: bool = False) -> None:
        """Go on with the file at `path`, or begin it.

        head: what the run is: JSON values by their names in sentences, `FORMAT` first. scratch: a new file's name on
        the same disk.
        retry_errors: forget the rows that have an error.

        Raises EdgeVLMError where the file is of a run with another head, damaged, or somebody else's.
        """
        self.count = self.errors = 0
        self._known: set[bytes] = set()
        found = head_line(path)
        if found is None:
            begin(path, head, (), scratch)
        else:
            check_head(path, found, head)
            if retry_errors:
                begin(path, found, (row for row in read_rows(path) if row["error"] is None), scratch)
        whole = 0
        for row, end in _scan(path):
            whole = end
            if row is not None:
                self._note(row)
        os.truncate(path, whole)
        self._stream: IO[bytes] = path.open("ab")
        self._synced = time.monotonic()

    def __contains__(self, name: str) -> bool:
        return _key(name) in self._known

    def write(self, row: Row) -> None:
        """Add a picture's row; nothing where it has one."""
        if row["picture"] in self:
            return
        self._stream.write(_line(row))
        self._stream.flush()
        self._note(row)
        if time.monotonic() - self._synced >= EVERY:
            self.sync()

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        os.fsync(self._stream.fileno())
        self._synced = time.monotonic()

    def finish(self, table: Row) -> None:
        """Add what the finished table is, for `finished`; a run that goes on all the same drops that line."""
        self._stream.write(_line({"finished": table, "rows": self.count, "errors": self.errors}))
        self._stream.flush()
        self.sync()

    def close(self) -> None:
        with suppress(OSError):  # of a full disk; the rows' own errors were raised
            self.sync()
        with suppress(OSError):
            self._stream.close()

    def _note(self, row: Row) -> None:
        self._known.add(_key(row["picture"]))
        self.count += 1
        self.errors += row["error"] is not None


def begin(path: Path, head: Row, rows: Iterable[Row], scratch: Path) -> None:
    """Put a journal with these rows at `path`, in one step."""
    with scratch.open("wb") as stream:
        stream.write(_line(head))
        stream.writelines(map(_line, rows))
    sync([scratch])
    os.replace(scratch, path)
    sync([path.parent])


def finished(path: Path) -> Row | None:
    """What `Journal.finish` added at the end of a file; None where the run was not so far."""
    with suppress(OSError, ValueError), path.open("rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - 1000))
        *_, last = [b"", *stream.read().splitlines()]
        found = parse_json(last)
        return found if isinstance(found, dict) and "finished" in found else None
    return None


def read_rows(path: Path) -> Iterator[Row]:
    """The whole rows of a journal, one at a time. Raises EdgeVLMError where one is damaged and others follow it."""
    return (row for row, _ in _scan(path) if row is not None)


def _scan(path: Path) -> Iterator[tuple[Row | None, int]]:
    """None for the first line, then the rows; and where in the file each of them ends."""
    with path.open("rb") as stream:
        end = len(stream.readline())
        yield None, end
        for number, line in enumerate(stream, 2):
            row = _row(line)
            if row is None and stream.readline():
                raise EdgeVLMError(
                    f"'{path}' is damaged in line {number}: mend that line or remove it, and run the same command."
                )
            if row is None:
                return
            end += len(line)
            yield row, end


def _row(line: bytes) -> Row | None:
    try:
        row = parse_json(line, halves=True) if line.endswith(b"\n") else None
    except ValueError:
        return None
    if not isinstance(row, dict) or not row.keys() >= KEYS or not isinstance(row["picture"], str):
        return None
    return row


def head_line(path: Path) -> Row | None:
    """The first line of an earlier run's file; None where there is none, or no whole line in it.

    Raises EdgeVLMError where the file is somebody else's.
    """
    if not os.path.lexists(path):
        return None
    check_regular(path)
    with path.open("rb") as stream:
        line = stream.readline(limits.LINE)
    if not line.endswith(b"\n") and line[: len(_BEGINNING)] == _BEGINNING[: len(line)]:  # stopped in its first line
        return None
    try:
        found = parse_json(line, halves=True) if line.startswith(_BEGINNING) else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise EdgeVLMError(
            f"'{path}', where answers lie until the last of them is there, is not what `edgevlm label` writes: move it "
            "away, or choose another output."
        )
    return found


def check_head(path: Path, found: Row, head: Row) -> None:
    """Refuse answers at `path` to other questions, by a sentence that says what differs."""
    wanted = parse_json(_line(head), halves=True)
    if different := [key for key in {**wanted, **found} if found.get(key) != wanted.get(key) and key != RETRIES]:
        said = [f"{key} was {_short(found.get(key))}, now {_short(wanted.get(key))}" for key in different[:3]]
        raise EdgeVLMError(
            f"'{path}' has the answers of another run ({'; '.join(said)}): give the same command as then, choose "
            "another output, or move that file away to begin again."
        )


def _short(value: Any) -> str:
    text = json_text(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _line(row: Row) -> bytes:
    return json_text(row).encode() + b"\n"


def _key(name: str) -> bytes:
    """16 bytes for a name, as Parquet writes it: a million pictures take some 100 MB of memory."""
    return hashlib.blake2b(name.encode("utf-8", "backslashreplace"), digest_size=16).digest()
