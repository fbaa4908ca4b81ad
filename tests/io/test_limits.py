"""The limits: documented, with a reason each, and all in use."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from edgevlm.io import limits

ROOT = Path(__file__).parents[2]
NAMES = [name for name in vars(limits) if name.isupper()]


def test_the_table_in_the_documents_is_the_modules_own() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "make_limits.py"))
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    assert script["page"]() == page, "run python docs/make_limits.py"
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == NAMES


def test_every_limit_is_used() -> None:
    folders = (ROOT / name for name in ("edgevlm", "export", "runtimes"))
    code = "\n".join(path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.py"))
    assert [name for name in NAMES if f"limits.{name}" not in code] == []
