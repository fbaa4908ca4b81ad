"""Qwen2-VL: any grid without windows, M-RoPE."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import qwen2_vl

sys.path.insert(0, str(Path(__file__).parent))
from harness import Checkpoint, QuantizedFamilyTests, Variant, check_turns
from test_qwen2_5_vl import SIZES, views

VARIANTS = {
    layout: Variant(layout, partial(qwen2_vl.build, layout=layout), qwen2_vl.load_processor, views, SIZES)
    for layout in ("hub", "saved", "memory")
}


class TestQwen2VL(QuantizedFamilyTests):
    variants = VARIANTS
    passing = replace(VARIANTS["hub"], build=partial(qwen2_vl.build, seed=1, layout="hub"))

    def test_turns_are_transformers(self, made: Checkpoint) -> None:
        check_turns(made)
