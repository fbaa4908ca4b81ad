"""For mkdocs: what pages link to outside docs/ comes along, below repository/, so that links work as they stand.

A Markdown file becomes a page, anything else is copied. Neither is stored a second time.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(\]\(\s*)([^)\s#]+)")  # of Markdown: the address up to its anchor
CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    todo = [path for path in (Path(file.abs_src_path or "") for file in files) if path.suffix == ".md"]
    while todo:
        page = todo.pop()
        for target in filter(None, (_target(page, link) for link in _links(page))):
            place = _place(target)
            if target.is_file() and files.get_file_from_path(place) is None and place.startswith("repository/"):
                files.append(File.generated(config, place, abs_src_path=str(target)))
                todo += [target] if target.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    source = Path(page.file.abs_src_path)
    here = posixpath.dirname(page.file.src_uri)

    def moved(link: re.Match[str]) -> str:
        target = _target(source, link[2])
        return link[0] if target is None else link[1] + posixpath.relpath(_place(target), here or ".")

    parts = CODE.split(markdown)
    parts[::2] = [LINK.sub(moved, part) for part in parts[::2]]
    return "".join(parts)


def _links(page: Path) -> list[str]:
    return [link[2] for link in LINK.finditer(CODE.sub("", page.read_text(encoding="utf-8")))]


def _target(page: Path, link: str) -> Path | None:
    """The file of the repository that a page's link leads to."""
    path = Path(os.path.normpath(page.parent / link))
    return path if "://" not in link and path.is_relative_to(ROOT) and path.exists() else None


def _place(path: Path) -> str:
    """Where a file of the repository stands in the site."""
    place = path.relative_to(ROOT).as_posix()
    return place.removeprefix("docs/") if place.startswith("docs/") else f"repository/{place}"
