"""Gemma 4: per-layer embeddings, layers that share keys and values, heads of two sizes, a tower with bounded maps."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import gemma4

sys.path.insert(0, str(Path(__file__).parent))
from harness import SIZES, QuantizedFamilyTests, Variant

from edgevlm.types import F32


def views(inputs: dict[str, Any]) -> list[F32]:
    """Patches (pictures, patches, values) with their columns and rows, -1 behind the last; the model makes 2 x - 1."""
    found, p = [], gemma4.PATCH
    for patches, places in zip(inputs["pixel_values"], inputs["image_position_ids"], strict=True):
        real = places[:, 0] >= 0
        cols, rows = places.max(0) + 1
        cells = patches[real].reshape(rows, cols, p, p, 3)
        pixels = cells.transpose(4, 0, 2, 1, 3).reshape(3, rows * p, cols * p)
        found.append(np.float32(2) * (pixels - np.float32(0.5)))
    return found


def _variant(name: str, **options: Any) -> Variant:
    return Variant(name, partial(gemma4.build, **options), gemma4.load_processor, views, sizes=(*SIZES, *LONG))


LONG = [(1, 200), (200, 1), (1000, 3), (4100, 60)]
VARIANTS = {name: _variant(name, layout=name) for name in ("hub", "saved", "memory")}


class TestGemma4(QuantizedFamilyTests):
    variants = VARIANTS
    passing = VARIANTS["hub"]
