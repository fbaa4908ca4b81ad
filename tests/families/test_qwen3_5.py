"""Qwen3.5: the gated delta rule beside gated attention, RoPE over part of a head."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import qwen3_5

sys.path.insert(0, str(Path(__file__).parent))
from harness import Checkpoint, QuantizedFamilyTests, Variant
from test_qwen2_5_vl import SIZES, views

VARIANTS = {
    layout: Variant(layout, partial(qwen3_5.build, layout=layout), qwen3_5.load_processor, views, SIZES)
    for layout in ("hub", "saved", "memory")
} | {"untied": Variant("untied", partial(qwen3_5.build, tie=False), qwen3_5.load_processor, views, SIZES)}


class TestQwen35(QuantizedFamilyTests):
    variants = VARIANTS

    @pytest.fixture
    def quantized(self, quantize: str, tmp_path: Path) -> Checkpoint:
        """Delta rules carry the rounding of activations from position to position: each form passes on other seeds."""
        build = partial(qwen3_5.build, seed={"int8": 7, "int4": 9}[quantize], layout="hub")
        return Checkpoint(replace(VARIANTS["hub"], build=build), tmp_path)
