"""MiniCPM-V 4.7: MiniCPM-V 4.6 on a canvas."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from transformers import MiniCPMV4_7Processor

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import minicpmv4_6

sys.path.insert(0, str(Path(__file__).parent))
from harness import Checkpoint, FamilyTests, Variant, check_turns


def variant(name: str, **options: Any) -> Variant:
    build = partial(minicpmv4_6.build, version="4_7", **options)
    return Variant(name, build, partial(minicpmv4_6.load_processor, kind=MiniCPMV4_7Processor), minicpmv4_6.views)


class TestMiniCpmV47(FamilyTests):
    variants = {layout: variant(layout, layout=layout) for layout in ("hub", "saved", "memory")} | {
        "4x": variant("4x", mode="4x", tie=False)
    }
    engines: ClassVar = {"onnx": 64, "coreml": 32}  # llama.cpp hides from a token what lies to the right of it

    @pytest.mark.heavy
    def test_several_turns_are_transformers(self, made: Checkpoint) -> None:
        check_turns(made)
