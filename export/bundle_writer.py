"""Writes a bundle beside its final name and renames it there when it is whole."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgevlm.bundle import MANIFEST, FileInfo, Manifest, sha256
from edgevlm.errors import EdgeVLMError
from edgevlm.spec import to_dict


def check_free(out: Path, force: bool) -> None:
    """Refuse an output that exists before any work is done. `force` replaces bundles and empty folders only."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise EdgeVLMError(f"'{out}' exists and is no folder: choose another output folder.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not force:
        raise EdgeVLMError(f"'{out}' already exists: choose another output folder, or replace it with --force.")
    if not (out / MANIFEST).is_file():
        raise EdgeVLMError(
            f"'{out}' holds something that is not a bundle, and --force replaces bundles only: "
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
        raise EdgeVLMError(
            f"'{parent}' cannot be written ({error.strerror}): choose another output folder."
        ) from None
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def list_files(folder: Path) -> dict[str, FileInfo]:
    """Size and sha256 of every file below `folder` but the manifest."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            files[name] = FileInfo(path.stat().st_size, sha256(path))
    return files


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest in one step."""
    beside = folder / f"{MANIFEST}.new"
    write_json(beside, to_dict(manifest))
    beside.replace(folder / MANIFEST)


def publish(partial: Path, out: Path) -> None:
    """Move the finished folder to its final name; what stood there is removed after the new one is in place."""
    mask = os.umask(0)
    os.umask(mask)
    partial.chmod(0o777 & ~mask)  # mkdtemp makes private folders
    old = None
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.resolve().parent)) / "bundle"
        out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        if old is not None:
            old.rename(out)
        raise
    if old is not None:
        shutil.rmtree(old.parent, ignore_errors=True)
