"""What is installed, from where, under which licence, and by which workflows it is tested and released."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def committed(*patterns: str) -> list[Path]:
    """Files of the repository: what git tracks, and what it would."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_nobody_is_told_to_install_a_name_that_is_not_ours() -> None:
    """The index has no edgevlm: whoever registers the name would be installed. Docs and errors say `.[extra]`."""
    for path in committed("*.py", "*.md"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"edgevlm\[[a-z]|pip install ['\"]?edgevlm\b", text), path
        for extras, extra in re.findall(r"install '\.\[([\w,]+)\]'|install_hint\(['\"](\w+)['\"]\)", text):
            assert set((extras or extra).split(",")) <= EXTRAS.keys(), f"{path} names an extra that there is not"
