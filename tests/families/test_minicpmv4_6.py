"""MiniCPM-V 4.6: neighbours joined inside of the tower, a table whose nearest rows count, slices, positions as text."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import minicpmv4_6

sys.path.insert(0, str(Path(__file__).parent))
from harness import SIZES, FamilyTests, Variant

# Beside the usual ones: 200 to 1 and more, above 4096 pixels, and around the area from which on a picture is cut.
MORE = [(1, 300), (200, 1), (4100, 400), (400, 4100), (47, 49), (48, 49), (96, 97), (700, 30)]


def variant(name: str, **options: Any) -> Variant:
    build, sizes = partial(minicpmv4_6.build, **options), [*SIZES, *MORE]
    return Variant(name, build, minicpmv4_6.load_processor, minicpmv4_6.views, sizes)


class TestMiniCpmV46(FamilyTests):
    variants = {layout: variant(layout, layout=layout) for layout in ("hub", "saved", "memory")} | {
        "4x": variant("4x", mode="4x", tie=False, seed=1),
    }


def test_the_grid_is_the_processors_own() -> None:
    """For every shape at the published settings: the whole picture, slices and their order."""
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

    from edgevlm.inputs.slices import WholeThenSlices

    theirs, rule = MiniCPMV4_6ImageProcessorPil(), WholeThenSlices(56, 448, 9)
    random = np.random.default_rng(0)
    for width, height in [*np.exp(random.uniform(0, 9, (400, 2))).astype(int).tolist(), (1, 1), (448, 896), (449, 448)]:
        shape = (height, width), 448, 14, "16x"
        grid = theirs.get_sliced_grid((height, width), 9, 448)
        whole, *slices = rule.views(width, height)
        assert whole.size == theirs.find_best_resize(*shape, allow_upscale=grid is None)[::-1], (width, height)
        rows, cols = grid or (0, 0)
        wanted = [(row + 1, col + 1) for row in range(rows) for col in range(cols)]
        assert [view.place for view in slices] == wanted, (width, height)
        if grid is not None:
            high, wide = theirs.get_refine_size((height, width), grid, 448, 14, "16x", allow_upscale=True)
            assert {view.size for view in slices} == {(wide // cols, high // rows)}, (width, height)
