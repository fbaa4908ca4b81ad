"""Writes docs/licences.md: `make licences`, in an environment with the extra heavy.

Licences of packages come from their own metadata, those of what ships in edgevlm/assets from the pages there. The rows
of packages that are not installed here, such as those of another system, stay as they are.
"""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "licences.md"
ASSETS = ROOT / "edgevlm" / "assets"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BASE = "base"
EXTRAS = ("export", "gguf", "coreml", "eval", "llama", "constrain", "train", "video", "test", "heavy")

# What packages without a licence expression call their licence, and its SPDX name.
SPDX = {
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "BSD License": "BSD",
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "Public Domain": "public domain",
}
# Licences that ask for no more than their notice.
PERMISSIVE = {"0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC"}
PERMISSIVE |= {"MIT", "MIT-CMU", "PSF-2.0", "Unlicense", "WTFPL", "Zlib", "public domain"}

HEAD = """\
# Licences

EdgeVLM is under [Apache-2.0](../LICENSE). It installs the packages below and contains none of them. `make licences`
writes this page.

## The base install

`pip install .` brings {count} packages on Linux{but}. None is under
GPL, LGPL or AGPL. MPL-2.0 is a copyleft by file: who changes such a file and passes it on publishes that file, and
nothing else follows. Windows needs colorama (BSD-3-Clause), too.

Wheels also hold compiled libraries, which their own licence files list. Of those, numpy's for Linux have GCC's run-time
libraries: libgfortran (GPL-3.0-or-later with the GCC runtime library exception, which frees whatever is linked with it)
and libquadmath (LGPL-2.1-or-later, a shared library that may be exchanged). Pillow's optional GPL part, libimagequant,
is not in its wheels.

## Packages

*Comes with* names the base install, or the extras that ask for a package, themselves or through another one. torch's
build for CUDA brings NVIDIA's libraries, and the extra `coreai` Apple's beta, each under its maker's own terms: neither
is free software. The wheels of av, which the extra `video` brings, hold FFmpeg with x264 and x265, which makes these
libraries GPL-2.0-or-later: whoever passes them on does so under that licence. They are loaded when a video is read.

| package | licence | comes with |
|---|---|---|
"""


def spdx(text: str) -> str:
    return SPDX.get(text, text)


def licence(name: str) -> str:
    """An installed package's licence: its expression, else a short text, else what its classifiers say."""
    metadata = importlib.metadata.metadata(name)
    stated: str = metadata.get("License-Expression") or ""
    line = (metadata.get("License") or "").split("  ")[0].split("\n")[0].strip()
    classes = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier") or [] if c.startswith("License :: ")]
    named = line if spdx(line) != line or re.fullmatch(r"[A-Z][\w.-]+(?: (?:AND|OR) [\w.-]+)*", line) else ""
    return stated or spdx(named) or " OR ".join(spdx(c) for c in classes) or "not stated"


def permissive(text: str) -> bool:
    return all(word in PERMISSIVE for word in re.split(r" (?:AND|OR) ", text.replace(" WITH LLVM-exception", "")))


def wanted(texts: Iterable[str], extra: str = "") -> Iterator[Requirement]:
    for requirement in map(Requirement, texts):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def closure(texts: Iterable[str]) -> set[str]:
    """The installed packages that requirements ask for, with what these ask for."""
    seen: dict[str, set[str]] = {}
    todo = list(wanted(texts))
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name == "edgevlm":
            todo += [r for extra in requirement.extras for r in wanted(PROJECT["optional-dependencies"][extra])]
            continue
        new = {"", *requirement.extras} - seen.get(name, set())
        seen.setdefault(name, set()).update(new)
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        todo += [r for extra in new for r in wanted(needed, extra)]
    return {name for name in seen if any(importlib.metadata.distributions(name=name))}


def packages() -> dict[str, tuple[str, str]]:
    """Licence, and what asks for it, of each package that is installed here and that EdgeVLM asks for."""
    base = closure(PROJECT["dependencies"])
    asked: dict[str, list[str]] = {name: [BASE] for name in base}
    for extra in EXTRAS:
        for name in closure([f"edgevlm[{extra}]"]) - base:
            if extra in ("test", "heavy") and asked.get(name):
                continue
            asked.setdefault(name, []).append(extra)
    return {name: (licence(name), ", ".join(extras)) for name, extras in sorted(asked.items())}


def rows(text: str, head: str) -> list[list[str]]:
    """Cells of the tables whose head begins with a word; what is as above is said again."""
    found: list[list[str]] = []
    for table in re.findall(rf"^\| {head} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE):
        for line in table.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            found.append([found[-1][i] if cell == "as above" else cell for i, cell in enumerate(cells)])
    return found


def listed() -> dict[str, tuple[str, str]]:
    """The packages of the page as it is: licence, and what asks for each."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    return {cells[0]: (cells[1], cells[2]) for cells in rows(text, "package")}


def assets() -> Iterator[tuple[str, str, str]]:
    """(files, licence, page) of everything that ships in edgevlm/assets, as the pages there say."""
    page = (ASSETS / "default" / "README.md").read_text(encoding="utf-8")
    stated = re.search(r"^license: (\S+)$", page, re.MULTILINE)
    assert stated is not None
    yield "`default/`: weights, tokenizer, configuration", stated[1].replace("apache", "Apache"), "default"
    for folder in ("pictures", "scenes"):
        page = (ASSETS / folder / "README.md").read_text(encoding="utf-8")
        for cells in rows(page, "file"):
            if cells[-1] == "see below":
                continue
            yield ", ".join(f"`{folder}/{name}`" for name in re.findall(r"`([^`]+)`", cells[0])), cells[-1], folder
        for cells in rows(page, "font"):
            yield f"`{folder}/glyphs.png`: {cells[1]}", cells[-1], folder
    files = [*ASSETS.iterdir(), *(ASSETS / "serve").iterdir()]
    own = sorted(
        path.relative_to(ASSETS).as_posix() for path in files if path.suffix in (".json", ".css", ".js", ".html")
    )
    yield ", ".join(f"`{name}`" for name in own), "Apache-2.0", ""


def page(found: dict[str, tuple[str, str]]) -> str:
    others = [f"{name} ({text})" for name, (text, by) in found.items() if by == BASE and not permissive(text)]
    but = f", all permissive but {', '.join(others)}, which comes through tokenizers" if others else ", all permissive"
    text = HEAD.format(count=sum(by == BASE for _, by in found.values()), but=but)
    text += "".join(f"| {name} | {stated} | {by} |\n" for name, (stated, by) in sorted(found.items()))
    text += "\n## What ships inside EdgeVLM\n\n| in `edgevlm/assets` | licence | page |\n|---|---|---|\n"
    for files, stated, folder in assets():
        text += f"| {files} | {stated} | {f'[{folder}](../edgevlm/assets/{folder}/README.md)' if folder else ''} |\n"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(listed() | packages()), encoding="utf-8")
