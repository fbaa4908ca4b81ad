"""Files of a bundle's folder beside its graphs: the manifest with file hashes, and by what a bundle is known."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from edgevlm.bundle.manifest import MANIFEST, SCHEMA, FileInfo, Manifest, sha256
from edgevlm.io.folders import Kind
from edgevlm.io.records import to_dict
from edgevlm.io.text import json_text

_KEYS = {"schema", "model", "spec", "recipe", "targets", "files", "tools", "gate"}  # of every schema so far


def _own(manifest: Any) -> Collection[str] | None:
    """The files of a bundle of this schema or an earlier one. Programs of other kinds have manifest.json files, too."""
    if not isinstance(manifest, dict) or not manifest.keys() >= _KEYS:
        return None
    schema, files = manifest["schema"], manifest["files"]
    if type(schema) is not int or not 1 <= schema <= SCHEMA or not isinstance(files, dict):
        return None
    if not all(isinstance(info, dict) and info.keys() == {"size", "sha256"} for info in files.values()):
        return None
    return {MANIFEST, *files}


BUNDLE = Kind("bundle", MANIFEST, _own)


def write_json(path: Path, data: Any) -> None:
    path.write_text(json_text(data, indent=1) + "\n", encoding="utf-8", newline="\n")


def list_files(folder: Path) -> dict[str, FileInfo]:
    """Size and sha256 of every file below `folder` but the manifest."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            files[name] = FileInfo(path.stat().st_size, sha256(path))
    return files


def write_manifest(folder: Path, manifest: Manifest) -> None:
    write_json(folder / MANIFEST, to_dict(manifest))
