"""dots.ocr: a tower of gated layers between two norms, one frame to a patch, positions of one axis."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import dots_ocr

sys.path.insert(0, str(Path(__file__).parent))
from harness import QuantizedFamilyTests, Variant
from test_qwen2_5_vl import SIZES

from edgevlm.types import F32


def views(inputs: dict[str, Any]) -> list[F32]:
    """Patches in groups of 2 x 2, each (3, 8, 8), back to pictures."""
    found, at = [], 0
    for _, rows, cols in inputs.get("image_grid_thw", np.empty((0, 3), int)).tolist():
        patches = inputs["pixel_values"][at : at + rows * cols].reshape(rows // 2, cols // 2, 2, 2, 3, 8, 8)
        found.append(patches.transpose(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * 8, cols * 8))
        at += rows * cols
    return found


VARIANTS = {
    name: Variant(name, partial(dots_ocr.build, biased=biased), dots_ocr.load_processor, views, SIZES)
    for name, biased in (("hub", False), ("biased", True))
}


class TestDotsOcr(QuantizedFamilyTests):
    variants = VARIANTS
    passing = VARIANTS["hub"]
