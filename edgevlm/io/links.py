"""Links out of a folder that a stranger may have made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def stays_inside(path: Path, folder: Path) -> bool:
    """Whether `path`, links followed, lies in `folder`, or is a blob of the Hub's cache that `folder` is a snapshot of.

    The cache of one repository is models--OWNER--NAME: its snapshots/REVISION holds links to the files in its blobs.
    """
    real, home = path.resolve(), folder.resolve()
    if real.is_relative_to(home):
        return True
    cache = home.parent.parent
    return home.parent.name == "snapshots" and cache.name.startswith("models--") and real.parent == cache / "blobs"


def links_out(folder: Path) -> Iterator[Path]:
    """The links below `folder`, to files and to folders, that do not stay inside."""
    for where, folders, files in os.walk(folder):
        for path in (Path(where, name) for name in sorted([*folders, *files])):
            if path.is_symlink() and not stays_inside(path, folder):
                yield path
