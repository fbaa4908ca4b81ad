"""edgevlm.json: by this file a checkpoint is known as edgevlm's own work, and which of its files are."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from edgevlm.io.folders import Kind

LISTING = "edgevlm.json"
_VERSION = 1


def listed(name: str) -> Kind:
    """The kind of folder that holds a `name` and lists its files; the list is written when it is published."""

    def own(listing: Any) -> Collection[str] | None:
        if not isinstance(listing, dict) or (listing.get("edgevlm_listing"), listing.get("of")) != (_VERSION, name):
            return None
        files = listing.get("files")
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            return None
        return {LISTING, *files}

    def seal(folder: Path) -> None:
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        data = {"edgevlm_listing": _VERSION, "of": name, "files": files}
        (folder / LISTING).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8", newline="\n")

    return Kind(name, LISTING, own, seal)


CHECKPOINT = listed("checkpoint")
TRAINED = listed("trained model")
