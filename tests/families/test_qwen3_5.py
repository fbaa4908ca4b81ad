"""Qwen3.5: the gated delta rule beside gated attention, RoPE over part of a head."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import qwen3_5

sys.path.insert(0, str(Path(__file__).parent))
from harness import QuantizedFamilyTests, Variant
from test_qwen2_5_vl import SIZES, views

VARIANTS = {
    layout: Variant(layout, partial(qwen3_5.build, layout=layout), qwen3_5.load_processor, views, SIZES)
    for layout in ("hub", "saved", "memory")
} | {"untied": Variant("untied", partial(qwen3_5.build, tie=False), qwen3_5.load_processor, views, SIZES)}


class TestQwen35(QuantizedFamilyTests):
    variants = VARIANTS
    passing = replace(VARIANTS["hub"], build=partial(qwen3_5.build, seed=7, layout="hub"))
