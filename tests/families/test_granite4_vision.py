"""Granite Vision 4: levels of features by queries inside windows, rows that end in a newline on each level."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import granite4_vision

sys.path.insert(0, str(Path(__file__).parent))
from harness import SIZES, Checkpoint, QuantizedFamilyTests, Variant, check_turns
from test_llava_next import views

VARIANTS = {
    name: Variant(
        name,
        partial(granite4_vision.build, **options),
        granite4_vision.load_processor,
        views,
        [*SIZES, (200, 1), (1, 200), (4100, 60)],
    )
    for name, options in {
        "hub": {}, "saved": {"layout": "saved"}, "memory": {"layout": "memory"}, "tied": {"tie": True},
    }.items()
}  # fmt: skip


class TestGranite4Vision(QuantizedFamilyTests):
    variants = VARIANTS
    passing = VARIANTS["hub"]

    def test_turns_are_transformers(self, made: Checkpoint) -> None:
        check_turns(made)
