"""Files of a bundle's folder beside its graphs: the manifest with file hashes, and which folders may be replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgevlm.bundle.manifest import MANIFEST, FileInfo, Manifest, sha256
from edgevlm.io.folders import check_replaceable
from edgevlm.io.records import to_dict
from edgevlm.io.text import check_place, json_text


def check_free(out: Path, force: bool) -> None:
    """Refuse an output that exists before any work is done. `force` replaces bundles and empty folders only."""
    check_place(out)
    check_replaceable(out, force, MANIFEST, "bundle")


def write_json(path: Path, data: Any) -> None:
    path.write_text(json_text(data, indent=1) + "\n", encoding="utf-8")


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
