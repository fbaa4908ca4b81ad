"""Which pictures are asked about, in an order that stays the same: of a folder, a list of paths, or a Parquet file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from edgevlm.errors import EdgeVLMError, install_hint
from edgevlm.generate.given import is_data_url
from edgevlm.inputs.kinds import NAMED, looks_like_picture
from edgevlm.io import limits
from edgevlm.io.json import parse_json
from edgevlm.io.regular import check_regular, read_lines

FORM = '{"image": "photo.jpg"}'
COLUMNS = ("image", "picture", "path", "file_name", "bytes")  # of a Parquet file, in the order of looking
_ROWS = 64  # of a Parquet file in memory, each with its picture


class Picture(NamedTuple):
    name: str  # of its row in the table
    source: str | bytes | EdgeVLMError  # a path, the bytes of a file, or why there is neither


class Pictures:
    """Iterate for the pictures; nothing is held but the names of the folder that is being read."""

    def __init__(self, place: Path, column: str | None = None) -> None:
        """place: a folder, searched with all below it; a text file with a path in each line; JSON lines with an "image"
        each; or a Parquet file whose `column` (the first of `COLUMNS` that it has) holds paths, the bytes of files, or
        what Hugging Face's datasets make of them.

        Raises EdgeVLMError where `place` is none of these.
        """
        if not os.path.exists(place):
            raise EdgeVLMError(f"There is no '{place}': give a folder of pictures, or a file that lists them.")
        self.place, self.kind = place, "folder"
        if not place.is_dir():
            check_regular(place)
            if looks_like_picture(place):
                raise EdgeVLMError(f"'{place}' is one picture: ask about it with `edgevlm run`, or give its folder.")
            self.kind = {".parquet": "parquet", ".jsonl": "jsonl"}.get(place.suffix.lower(), "text")
        if column is not None and self.kind != "parquet":
            raise EdgeVLMError(f"A column is of a Parquet file, and '{place}' is none: leave --column out.")
        self.column = _column(place, column) if self.kind == "parquet" else column

    def __iter__(self) -> Iterator[Picture]:
        if self.kind == "folder":
            return in_folder(self.place)
        return _in_parquet(self.place, str(self.column)) if self.kind == "parquet" else self._listed()

    def count(self) -> int:
        """How many there are now."""
        if self.kind == "parquet":
            return int(open_parquet(self.place).metadata.num_rows)
        return sum(1 for _ in self)

    def _listed(self) -> Iterator[Picture]:
        for number, line in enumerate(read_lines(self.place, limits.LINE), 1):
            if (line := line.strip(b"\r\n")) and line.strip():
                yield _of_json(number, line) if self.kind == "jsonl" else _of_path(os.fsdecode(line))


def in_folder(folder: Path) -> Iterator[Picture]:
    """The pictures of a folder and of those below it, by name; each is called by its path below `folder`, with "/".

    A picture is a file that is named like one, or begins like one. Hidden files and folders are passed over. Links are
    followed, but not to a folder that they lie in.
    """
    levels = [(_entries(folder), "", {_identity(folder)})]
    while levels:
        entries, above, outer = levels[-1]
        entry = next(entries, None)
        if entry is None:
            levels.pop()
            continue
        name, path = f"{above}{entry.name}", entry.path
        if _is_folder(entry):
            try:
                if (identity := _identity(path)) not in outer:
                    levels.append((_entries(path), f"{name}/", outer | {identity}))
            except OSError as error:
                why = f"The folder '{path}' cannot be read ({error.strerror}): check its permissions."
                yield Picture(f"{name}/", EdgeVLMError(why))
        elif NAMED.search(name) or looks_like_picture(path):
            yield Picture(name, path)


def _entries(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return iter(sorted((e for e in found if not e.name.startswith(".")), key=lambda entry: entry.name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round
        return False


def _identity(folder: str | Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _of_path(path: str) -> Picture:
    return Picture(path, path)


def _of_json(number: int, line: bytes) -> Picture:
    try:
        row = parse_json(line)
    except ValueError as error:
        return Picture(f"line {number}", EdgeVLMError(f"The line is no JSON ({error}): write {FORM}."))
    path = row.get("image") if isinstance(row, dict) else None
    if not isinstance(path, str) or not path:
        return Picture(f"line {number}", EdgeVLMError(f'The line has no path under "image": write {FORM}.'))
    return Picture(f"line {number}", path) if is_data_url(path) else _of_path(path)


def import_pyarrow() -> Any:
    """pyarrow with its part for Parquet. Raises EdgeVLMError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise EdgeVLMError(f"Parquet files need the package pyarrow: {install_hint('label')}.") from None
    return pyarrow


def open_parquet(place: Path) -> Any:
    """A pyarrow.parquet.ParquetFile. Raises EdgeVLMError for what is none."""
    with _parquet_errors(place):
        return import_pyarrow().parquet.ParquetFile(place)


@contextmanager
def _parquet_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # pyarrow's errors are one or the other
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise EdgeVLMError(f"'{place}' is no Parquet file that can be read ({reason}): give another.") from None


def _column(place: Path, column: str | None) -> str:
    names = open_parquet(place).schema_arrow.names
    found = next((name for name in (COLUMNS if column is None else (column,)) if name in names), None)
    if found is None:
        wanted = "no column of pictures" if column is None else f"no column '{column}'"
        raise EdgeVLMError(f"'{place}' has {wanted}: name one of {', '.join(names)[:500]} with --column.")
    return found


def _in_parquet(place: Path, column: str) -> Iterator[Picture]:
    """A path is a picture's name; where bytes are given, the row's number from 0 is."""
    number, batches = 0, open_parquet(place).iter_batches(_ROWS, columns=[column])
    while True:
        with _parquet_errors(place):
            batch = next(batches, None)
        if batch is None:
            return
        for value in batch.column(0).to_pylist():
            yield _of_value(number, value)
            number += 1


def _of_value(number: int, value: Any) -> Picture:
    if isinstance(value, dict):  # datasets' Image
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return Picture(str(number), value)
    if isinstance(value, str) and value:
        return _of_path(value)
    kind = "nothing" if value is None else f"a value of type {type(value).__name__}"
    return Picture(str(number), EdgeVLMError(f"The row holds {kind}: give a path or the bytes of a picture."))
