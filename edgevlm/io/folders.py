"""Writes a folder beside its final name and renames it there when it is whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgevlm.errors import EdgeVLMError


def check_replaceable(out: Path, force: bool, marker: str, what: str) -> None:
    """Refuse an output that exists before any work is done.

    `force` replaces empty folders and folders that hold the file `marker`, which makes them a `what`.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise EdgeVLMError(f"'{out}' exists and is no folder: choose another output folder.")
    if out.is_dir() and out.samefile(Path.cwd()):
        raise EdgeVLMError(f"'{out}' is the current folder, which cannot be replaced: name a folder inside it.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not force:
        raise EdgeVLMError(f"'{out}' already exists: choose another output folder, or replace it with --force.")
    if not (out / marker).is_file():
        raise EdgeVLMError(
            f"'{out}' holds something that is not a {what}, and --force replaces {what}s only: "
            "choose another output folder."
        )


@contextmanager
def partial_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out` on the same disk, removed if it is still there at the end."""
    parent = out.resolve().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=parent))
    except OSError as error:
        raise EdgeVLMError(f"'{parent}' cannot be written ({error.strerror}): choose another output folder.") from None
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, out: Path) -> None:
    """Move the finished folder to its final name; an old folder of that name is removed afterwards."""
    mask = os.umask(0)
    os.umask(mask)
    partial.chmod(0o777 & ~mask)  # mkdtemp makes private folders
    old = None
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.resolve().parent)) / "old"
        out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        if old is not None:
            old.rename(out)
        raise
    if old is not None:
        shutil.rmtree(old.parent, ignore_errors=True)
