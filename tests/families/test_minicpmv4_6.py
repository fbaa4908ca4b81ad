"""MiniCPM-V 4.6: neighbours joined inside of the tower, a table whose nearest rows count, slices, positions as text."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import minicpmv4_6

sys.path.insert(0, str(Path(__file__).parent))
from harness import SIZES, FamilyTests, Variant

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_image_spec, read_model
from edgevlm.errors import EdgeVLMError

# Beside the usual ones: 200 to 1 and more, above 4096 pixels, and around the area from which on a picture is cut.
MORE = [(1, 300), (200, 1), (4100, 400), (400, 4100), (47, 49), (48, 49), (96, 97), (700, 30)]


def variant(name: str, **options: Any) -> Variant:
    build, sizes = partial(minicpmv4_6.build, **options), [*SIZES, *MORE]
    return Variant(name, build, minicpmv4_6.load_processor, minicpmv4_6.views, sizes)


class TestMiniCpmV46(FamilyTests):
    variants = {layout: variant(layout, layout=layout) for layout in ("hub", "saved", "memory")} | {
        "4x": variant("4x", mode="4x", tie=False, seed=1),
    }


@pytest.mark.parametrize(
    ("file", "key", "value", "expected"),
    [
        ("config.json", "merger_times", 2, "expected 1"),
        ("config.json", "merge_kernel_size", [2, 1], r"expected \[2, 2\]"),
        ("config.json", "drop_vision_last_layer", True, "expected false"),
        ("preprocessor_config.json", "downsample_mode", "4x", "the 32 pixels of a token"),
        ("preprocessor_config.json", "stack_frames", 3, "expected 1"),
    ],
)
def test_what_is_not_supported_is_refused(file: str, key: str, value: Any, expected: str, tmp_path: Path) -> None:
    minicpmv4_6.build(tmp_path)
    settings = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(settings | {key: value}))
    with pytest.raises(EdgeVLMError, match=f"has {key} = .*{expected}"):
        read_image_spec(tmp_path, read_model(open_checkpoint(str(tmp_path)))[0])


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
