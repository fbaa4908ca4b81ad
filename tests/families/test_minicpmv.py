"""MiniCPM-V 2.6 to 4.5: learned queries that read a tower of any grid, on three decoders."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import minicpmv

sys.path.insert(0, str(Path(__file__).parent))
from harness import SIZES, FamilyTests, Variant

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_model
from edgevlm.errors import EdgeVLMError

MORE = [(1, 300), (200, 1), (4100, 400), (400, 4100), (47, 49), (48, 49), (96, 97), (700, 30)]


def variant(name: str, **options: Any) -> Variant:
    build = partial(minicpmv.build, **options)
    return Variant(name, build, minicpmv.load_processor, minicpmv.views, [*SIZES, *MORE])


class TestMiniCpmV(FamilyTests):
    variants: ClassVar = {
        "2.6": variant("2.6"),
        "4.0": variant("4.0", version="4.0", drop=True),
        "4.5": variant("4.5", version="4.5"),
    }


def test_earlier_versions_are_refused(tmp_path: Path) -> None:
    minicpmv.build(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"version": 2.6', '"version": 2.5'))
    with pytest.raises(EdgeVLMError, match=r"has version = 2.5, expected 2.6, 4.0 or 4.5"):
        read_model(open_checkpoint(str(tmp_path)))


def test_the_grid_is_that_of_the_published_code() -> None:
    """For every shape at the published settings: the whole picture, slices and their order."""
    from edgevlm.inputs.slices import WholeThenSlices

    rule, random = WholeThenSlices(14, 448, 9), np.random.default_rng(0)
    for width, height in [*np.exp(random.uniform(0, 9, (600, 2))).astype(int).tolist(), (1, 1), (448, 896), (449, 448)]:
        grid, (whole, *slices) = minicpmv.sliced_grid((width, height), 9, 448), rule.views(width, height)
        assert whole.size == minicpmv.best_size((width, height), 448, 14, grid is None)
        cols, rows = grid or (0, 0)
        assert [view.place for view in slices] == [(row + 1, col + 1) for row in range(rows) for col in range(cols)]
