"""PaddleOCR-VL: any grid, a table with centers in proportion, M-RoPE without biases."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import paddleocr_vl

sys.path.insert(0, str(Path(__file__).parent))
from harness import SIZES, Checkpoint, QuantizedFamilyTests, Variant, check_turns

from edgevlm.types import F32


def views(inputs: dict[str, Any]) -> list[F32]:
    """Patches row by row, each (3, 8, 8), back to pictures."""
    found, at = [], 0
    for _, rows, cols in inputs.get("image_grid_thw", np.empty((0, 3), int)).tolist():
        patches = inputs["pixel_values"][at : at + rows * cols].reshape(rows, cols, 3, 8, 8)
        found.append(patches.transpose(2, 0, 3, 1, 4).reshape(3, rows * 8, cols * 8))
        at += rows * cols
    return found


VARIANTS = {
    layout: Variant(
        layout, partial(paddleocr_vl.build, layout=layout), paddleocr_vl.load_processor, views, [*SIZES, (1, 150)]
    )
    for layout in ("hub", "saved", "memory")
}


class TestPaddleOcrVl(QuantizedFamilyTests):
    variants = VARIANTS
    passing = replace(VARIANTS["hub"], build=partial(paddleocr_vl.build, seed=0, layout="hub"))

    def test_turns_are_transformers(self, made: Checkpoint) -> None:
        check_turns(made)
