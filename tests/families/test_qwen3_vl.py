"""Qwen3-VL: resampled positions, DeepStack, M-RoPE whose axes take turns."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import qwen3_vl

sys.path.insert(0, str(Path(__file__).parent))
from harness import Checkpoint, QuantizedFamilyTests, Variant, check_turns
from test_qwen2_5_vl import SIZES, views

VARIANTS = {
    layout: Variant(layout, partial(qwen3_vl.build, layout=layout), qwen3_vl.load_processor, views, SIZES)
    for layout in ("hub", "saved", "memory")
} | {"tied": Variant("tied", partial(qwen3_vl.build, tie=True), qwen3_vl.load_processor, views, SIZES)}


class TestQwen3VL(QuantizedFamilyTests):
    variants = VARIANTS
    passing = replace(VARIANTS["hub"], build=partial(qwen3_vl.build, seed=3, layout="hub"))

    def test_turns_are_transformers(self, made: Checkpoint) -> None:
        check_turns(made)
