"""Reads suites' files: JSON, JSON Lines and Parquet, from a folder or the Hub. Errors name file and place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError, install_hint
from edgevlm.evaluation.item import Picture
from edgevlm.io import limits
from edgevlm.io.json import parse_json, read_json
from edgevlm.io.names import is_below
from edgevlm.io.regular import read_lines

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def data_folder(data: str, files: tuple[str, ...], revision: str | None, cache_dir: Path | None) -> Path:
    """The folder `data`, or the Hub data set of that name, of which only `files` (patterns) are downloaded."""
    folder = Path(data)
    if folder.is_dir():
        return folder
    if folder.is_file():
        return folder
    if not _HUB_ID.fullmatch(data) or ".." in data:
        raise EdgeVLMError(f"There is no folder '{data}': give --data a folder, or a data set of the Hub (owner/name).")
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError:
        raise EdgeVLMError(
            f"'{data}' is not a folder, and the Hub needs the package huggingface_hub: "
            f"{install_hint('eval')}, or give a local folder."
        ) from None
    try:
        return Path(
            snapshot_download(
                data, repo_type="dataset", revision=revision, cache_dir=cache_dir, allow_patterns=list(files)
            )
        )
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise EdgeVLMError(
            f"The data set '{data}' is no local folder and could not be had from the Hub ({reason}): check the name "
            "and the network, or give a folder."
        ) from None


def suite_json(path: Path) -> Any:
    """The content of a suite's JSON file."""
    return read_json(path, "download the file again", largest=limits.DATA_FILE)


def read_jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, object) of each line; the place names file and line in messages."""
    try:
        for number, line in enumerate(read_lines(path, limits.LINE), 1):
            if not line.strip():
                continue
            place = f"'{path}', line {number}"
            try:
                row = parse_json(line, limits.LINE)
            except ValueError as error:
                raise EdgeVLMError(f"{place}: not JSON ({str(error)[:99]}): fix the line.") from None
            if not isinstance(row, dict):
                raise EdgeVLMError(f"{place}: a JSON object is expected: fix the line.")
            yield place, row
    except OSError as error:
        raise EdgeVLMError(f"'{path}' cannot be read ({error.strerror}): check the folder.") from None


def field(row: Any, place: str, kind: type | tuple[type, ...], *names: str) -> Any:
    """The first of `names` that the row has, of that kind."""
    if not isinstance(row, Mapping):
        raise EdgeVLMError(f"{place}: an object is expected: download the file again.")
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        raise EdgeVLMError(f"{place}: the field '{names[0]}' is missing: download the file again.")
    if not isinstance(row[name], kind) or isinstance(row[name], bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(k.__name__ for k in kinds)
        raise EdgeVLMError(f"{place}: '{name}' is {row[name]!r:.60}, expected {expected}: download the file again.")
    return row[name]


def texts(row: Any, place: str, *names: str) -> tuple[str, ...]:
    """A field that holds a text, a list of texts, or VQA's list of {"answer": text}."""
    found = field(row, place, (str, list, int, float), *names)
    values = found if isinstance(found, list) else [found]
    values = [value.get("answer") if isinstance(value, dict) else value for value in values]
    if not values or not all(isinstance(value, str | int | float) for value in values):
        raise EdgeVLMError(f"{place}: '{names[0]}' should hold texts: download the file again.")
    return tuple(str(value) for value in values)


def only_file(folder: Path, patterns: Iterable[str]) -> Path | None:
    """The first file below `folder` (or the file itself) that fits a pattern, patterns in order of preference."""
    for pattern in patterns:
        if folder.is_file():
            if folder.match(pattern):
                return folder
        elif found := sorted(folder.rglob(pattern)):
            return found[0]
    return None


class Pictures:
    """Finds a suite's pictures by the names in its files, in their usual folders."""

    def __init__(self, root: Path, *folders: str) -> None:
        self._root = root
        self._folders = ["", *folders]

    def __call__(self, name: str, place: str) -> Picture:
        if not is_below(name):
            raise EdgeVLMError(f"{place}: the picture '{name}' is no path below the folder: do not use this file.")
        for number, folder in enumerate(self._folders):
            path = self._root / folder / name
            if path.is_file():
                self._folders.insert(0, self._folders.pop(number))  # the next one is probably there, too
                return Picture(name, partial(Path, path))
        looked = ", ".join(repr(str(self._root / folder)) for folder in self._folders)
        raise EdgeVLMError(f"{place}: the picture '{name}' is missing (looked in {looked}): complete the folder.")


def parquet_rows(folder: Path, pattern: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Picture]]]:
    """(place, row without pictures, pictures by column) of the Parquet files below `folder` that fit the pattern.

    Pictures are the Hub's structs of bytes and path; `Picture.load` reads them.
    """
    for path in sorted(folder.rglob(pattern)):
        file = _parquet(path)
        struct = [name for name in file.schema_arrow.names if _is_picture(file.schema_arrow.field(name).type)]
        plain = [name for name in file.schema_arrow.names if name not in struct]
        number = 0
        for group in range(file.num_row_groups):
            for index, row in enumerate(_group(path, file, group, plain).to_pylist()):
                number += 1
                pictures = {name: _parquet_picture(path, group, index, name) for name in struct}
                yield f"'{path}', row {number}", row, pictures


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise EdgeVLMError(
            f"'{path}' is a Parquet file, which needs the package pyarrow: {install_hint('eval')}."
        ) from None
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _group(path: Path, file: Any, group: int, columns: list[str]) -> Any:
    try:
        return file.read_row_group(group, columns=columns)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> EdgeVLMError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
    return EdgeVLMError(f"'{path}' is no whole Parquet file ({reason}): download it again.")


def _is_picture(kind: Any) -> bool:
    return hasattr(kind, "num_fields") and {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}


def _parquet_picture(path: Path, group: int, index: int, column: str) -> Picture:
    def load() -> bytes:
        value = _column(path, group, column)[index].as_py()
        data = value["bytes"] if value else None
        if not isinstance(data, bytes):
            place = f"'{path}', row group {group + 1}"
            raise EdgeVLMError(f"{place}: a picture of '{column}' is missing: download it again.")
        return data

    return Picture(f"{path.name}:{group}:{index}:{column}", load)


@lru_cache(maxsize=2)
def _column(path: Path, group: int, column: str) -> Any:
    return _group(path, _parquet(path), group, [column]).column(column)
