"""LFM3-VL: convolutions over any grid, a gate for each head, two RoPEs, windows among layers with a state."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import lfm3_vl

sys.path.insert(0, str(Path(__file__).parent))
from harness import Checkpoint, FamilyTests, Variant, check_turns
from test_qwen2_5_vl import SIZES, views

VARIANTS = {
    layout: Variant(layout, partial(lfm3_vl.build, seed=2, layout=layout), lfm3_vl.load_processor, views, SIZES)
    for layout in ("hub", "saved", "memory")
} | {"plain": Variant("plain", partial(lfm3_vl.build, seed=2, plain=True), lfm3_vl.load_processor, views, SIZES)}


class TestLfm3Vl(FamilyTests):
    variants = VARIANTS
    engines: ClassVar[dict[str, int]] = {"onnx": 64, "coreml": 32}  # llama.cpp has no such decoder

    def test_turns_are_transformers(self, made: Checkpoint) -> None:
        check_turns(made)
