"""Rewrites the locked requirements beside this file: `make lock`, with uv on the path of this Python's environment.

test.txt   what `pip install '.[test]'` installs, each file by its hash, for all systems and Pythons at once
torch.txt  torch alone, without hashes: the same version comes in builds for CPU and CUDA, from several indexes, and
           which one is right is the machine's matter. What it needs is in test.txt, CUDA aside.
tools.txt  what builds, checks and releases EdgeVLM, from tools.in
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# torch, and what only its CUDA build needs.
UNLOCKED = re.compile(r"torch|triton|(nvidia|cuda)-.*")
OLDEST = "3.11"


def compiled(source: Path, *options: str) -> str:
    """uv's universal resolution of a file, hashes and all, without its header and without any index's name."""
    command = [
        Path(sys.executable).with_name("uv"), "pip", "compile", "--quiet", "--universal", "--generate-hashes",
        "--python-version", OLDEST, "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links",
        *options, source,
    ]  # fmt: skip
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent).stdout


def entries(text: str) -> list[str]:
    """A lock's requirements, each with the lines of its hashes."""
    return re.findall(r"^\S.*(?:\n .*)*\n", text, re.MULTILINE)


def name(entry: str) -> str:
    return entry.split("==")[0]


def main() -> None:
    head = "# Written by `make lock`: do not edit.\n"
    found = entries(compiled(HERE.parent / "pyproject.toml", "--extra", "test"))
    locked = [entry for entry in found if not UNLOCKED.fullmatch(name(entry))]
    torch = next(entry.split()[0] for entry in found if name(entry) == "torch")
    (HERE / "test.txt").write_text(head + "".join(locked), encoding="utf-8")
    (HERE / "torch.txt").write_text(f"{head}{torch}\n", encoding="utf-8")
    (HERE / "tools.txt").write_text(head + "".join(entries(compiled(HERE / "tools.in"))), encoding="utf-8")


if __name__ == "__main__":
    main()
