"""Granite-Docling of 2026: levels of features of a tower of one size, fixed positions in its connector."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import granite_docling

sys.path.insert(0, str(Path(__file__).parent))
from harness import SIZES, Checkpoint, QuantizedFamilyTests, Variant, check_turns

from edgevlm.inputs.rules import Dense, RatioTiles

VARIANTS = {
    name: Variant(
        name,
        partial(granite_docling.build, **options),
        granite_docling.load_processor,
        granite_docling.views,
        [*SIZES, (1, 300), (200, 1), (4100, 400)],
    )
    for name, options in {
        "hub": {}, "saved": {"layout": "saved"}, "memory": {"layout": "memory"}, "coarse": {"fine": False},
    }.items()
}  # fmt: skip


class TestGraniteDocling(QuantizedFamilyTests):
    variants = VARIANTS
    passing = VARIANTS["hub"]

    def test_turns_are_transformers(self, made: Checkpoint) -> None:
        check_turns(made)


@pytest.mark.parametrize(
    ("settings", "dense"),
    [
        ({}, None),
        ({"dense_max_scale": 0.7}, Dense(48, 0.7, None, None)),
        ({"dense_min_aspect": 1.1, "dense_max_aspect": 3.0}, Dense(48, None, 1.1, 3.0)),
        ({"dense_max_scale": 0.9, "dense_min_aspect": 1.1}, Dense(48, 0.9, 1.1, None)),
    ],
)
def test_the_grid_is_the_processors_own(settings: dict[str, float], dense: Dense | None) -> None:
    """For every shape at the class's settings, up to 32 tiles, 16 per side, and for pages that get 48."""
    theirs = granite_docling.GraniteDoclingImageProcessorPil(dense_max_patches=48, **settings)
    rule = RatioTiles(512, 1, 32, True, 16, True, dense)
    random = np.random.default_rng(0)
    sizes = np.exp(random.uniform(0, 9, (300, 2))).astype(int).tolist()
    for width, height in [*sizes, (1, 1), (1, 65536), (9000, 30), (30, 9000)]:
        rows, cols = theirs.get_tile_grid(height, width)
        places = [view.place for view in rule.views(width, height)]
        wanted = [(row + 1, col + 1) for row in range(rows) for col in range(cols)]
        assert places == [*wanted, *([None] if rows * cols > 1 else [])], (width, height)
