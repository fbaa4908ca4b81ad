"""Output files: never replaced without permission, never half written."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError


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


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 beside `path`, then take its place in one step."""
    if path.exists() and not path.is_file():  # /dev/stdout, a pipe: there is nothing to lose
        path.write_text(text, encoding="utf-8")
        return
    handle, beside = tempfile.mkstemp(prefix=f".{path.name[:80]}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(beside, 0o666 & ~mask)  # mkstemp's own mode is for secrets
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def change_json(path: Path, changes: dict[str, Any]) -> None:
    """Write a JSON object's file again with `changes` in it, merged into the sections that are there."""
    settings = json.loads(path.read_text())
    for name, value in changes.items():
        settings[name] = settings.get(name, {}) | value if isinstance(value, dict) else value
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
