"""Qwen2.5-VL: any grid, window attention, M-RoPE."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import qwen2_5_vl

sys.path.insert(0, str(Path(__file__).parent))
from harness import QuantizedFamilyTests, Variant

from edgevlm.types import F32


def views(inputs: dict[str, Any]) -> list[F32]:
    """Patches in groups of 2 x 2, each (3, 2 equal frames, 8, 8), back to pictures."""
    found, at = [], 0
    for _, rows, cols in inputs.get("image_grid_thw", np.empty((0, 3), int)).tolist():
        patches = inputs["pixel_values"][at : at + rows * cols].reshape(rows // 2, cols // 2, 2, 2, 3, 2, 8, 8)
        assert np.array_equal(patches[..., 0, :, :], patches[..., 1, :, :])
        found.append(patches[..., 0, :, :].transpose(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * 8, cols * 8))
        at += rows * cols
    return found


# Wider than 200 to 1 is refused by the processor.
SIZES = [(20, 30), (31, 17), (48, 48), (64, 32), (97, 53), (53, 97), (127, 211), (300, 41), (96, 144), (640, 480)]
VARIANTS = {
    layout: Variant(layout, partial(qwen2_5_vl.build, layout=layout), qwen2_5_vl.load_processor, views, SIZES)
    for layout in ("hub", "saved", "memory")
}
# Pictures of the tests are hardly larger than windows of 112 pixels, which are the only ones that llama.cpp has.
VARIANTS["windows of 112"] = replace(
    VARIANTS["hub"], name="windows of 112", build=partial(qwen2_5_vl.build, window=112)
)


class TestQwen25VL(QuantizedFamilyTests):
    variants = VARIANTS
    passing = replace(VARIANTS["hub"], build=partial(qwen2_5_vl.build, seed=5, layout="hub"))
