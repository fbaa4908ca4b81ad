"""Pictures to label, and what a finished table says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]


def draw(folder: Path, count: int) -> Path:
    for number in range(count):
        place = folder / f"{number % 7}" / f"{number:05}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST).save(place)
    return folder


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def answers(out: Path) -> dict[str, tuple[str, str]]:
    return {row["picture"]: (row["sha256"], row["answer"]) for row in rows(out)}


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
