"""Numbers that a port can draw, too, digests, and how the vectors of the Kotlin SDK are written."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
DIGITS = 12  # of a sha256 in hexadecimal


def sha(*arrays: Any) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array if isinstance(array, bytes) else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:DIGITS]


class Numbers:
    """Whole numbers that a port can draw, too: x becomes (x * 1103515245 + 12345) mod 2^31."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def below(self, end: int) -> int:
        self.state = (self.state * 1103515245 + 12345) % 2**31
        return (self.state >> 8) % end

    def side(self) -> int:
        return 1 + self.below((60, 700, 5000, 40000)[self.below(4)])

    def features(self, count: int, width: int) -> Any:
        """float32 (count, width), near -1 to 1."""
        return (
            np.array([self.below(2001) - 1000 for _ in range(count * width)], np.float32).reshape(count, width) / 1000
        )


def to_json(values: dict[str, Any], lists: dict[str, Iterable[Any]]) -> str:
    """An object with a line for each value, and for each item of a list."""
    lines = [f"{_line(name)}: {_line(value)}" for name, value in values.items()]
    lines += [f"{_line(name)}: [\n" + ",\n".join(map(_line, items)) + "\n]" for name, items in lists.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def main(name: str, text: Callable[[], str], about: str) -> int:
    """(Re)write android_demo/vectors/`name`, or with --check only say, by exit code 1, that it would change."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the file would change")
    out, check = ROOT / "android_demo" / "vectors" / name, parser.parse_args().check
    made = text()
    if check:
        return int(not out.is_file() or out.read_text("utf-8") != made)
    out.parent.mkdir(exist_ok=True)
    out.write_text(made, "utf-8")
    return 0
