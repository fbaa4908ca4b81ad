"""Output files: written beside their final name, and never put in the place of something without permission."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.io.claims import claimed, work_folder
from edgevlm.io.full import disk_errors
from edgevlm.io.renames import rename_free, rename_new, sync

_PATIENCE = 10.0  # seconds; a file is claimed for as long as it takes to write it
_DEVICES = ("/dev/", "/proc/")  # names of streams, whatever a shell has put behind them


def check_new(path: Path, force: bool = False) -> None:
    """Refuse, before any work, a file that `write_text` could not or should not write.

    An empty file (what mktemp makes) may be written over, anything else only with `force`.
    """
    if path.is_dir():
        raise EdgeVLMError(f"'{path}' is a folder: give the name of a file.")
    if not path.parent.is_dir():
        raise EdgeVLMError(f"There is no folder '{path.parent}' for the file '{path.name}': make it first.")
    if path.is_file() and path.stat().st_size and not force:
        raise EdgeVLMError(f"'{path}' already exists: choose another name, or replace it with --force.")


def is_stream(path: Path) -> bool:
    """Whether `path` is a pipe or a device: written as it is, for there is nothing to lose."""
    return str(path).startswith(_DEVICES) or (path.exists() and not path.is_file())


def real_place(path: Path) -> Path:
    """Where a file lies behind all links, so that writing it leaves links what they are."""
    return path.resolve() if path.is_symlink() else path.parent.resolve() / path.name


@contextmanager
def writing(path: Path, force: bool = False) -> Iterator[Path]:
    """The name of a new file beside `path`, which takes its place in one step once the block has written it.

    Without `force` a file that has appeared there is kept: EdgeVLMError then says where the new one lies.
    """
    place = real_place(path)
    work = work_folder(place)
    with disk_errors(path, work), claimed(place, patience=_PATIENCE), disk_errors(path, work):
        yield work / "new"
        put(work / "new", path, force)


def put(new: Path, path: Path, force: bool = False) -> None:
    """Give a finished file its name in one step, as `writing` does."""
    place = real_place(path)
    sync([new])
    if force or (place.is_file() and not place.stat().st_size):
        os.replace(new, place)
    else:
        try:
            rename_new(new, place)
        except FileExistsError:
            kept = rename_free(new, place)
            raise EdgeVLMError(
                f"'{path}' appeared while this ran, and was kept: the new file is '{path.with_name(kept.name)}'."
            ) from None
    sync([place.parent])


def write_text(path: Path, text: str, force: bool = False) -> None:
    """Write `text` as UTF-8 beside `path`, then take its place in one step. Streams are written as they are."""
    if is_stream(path):
        path.write_text(text, encoding="utf-8", newline="\n")
        return
    with writing(path, force) as new:
        new.write_text(text, encoding="utf-8", newline="\n")


def change_json(path: Path, changes: dict[str, Any]) -> None:
    """Write a JSON object's file again with `changes` in it, merged into the sections that are there."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    for name, value in changes.items():
        settings[name] = settings.get(name, {}) | value if isinstance(value, dict) else value
    write_text(path, json.dumps(settings, indent=2, sort_keys=True) + "\n", force=True)
