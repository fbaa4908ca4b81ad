"""GLM-4.1V, GLM-4.6V-Flash and GLM-OCR: a merger with a gated MLP, norms on both sides, RoPE over pairs."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import glm4v

sys.path.insert(0, str(Path(__file__).parent))
from harness import SIZES, Checkpoint, QuantizedFamilyTests, Variant, check_turns
from test_qwen2_5_vl import views


def variant(name: str, kind: str, **options: object) -> Variant:
    build, load = partial(glm4v.build, kind=kind, **options), partial(glm4v.load_processor, kind=kind)
    return Variant(name, build, load, views, [*SIZES, (1, 199), (400, 2), (13, 7)])


class TestGlm4V(QuantizedFamilyTests):
    variants = {layout: variant(layout, "glm4v", layout=layout) for layout in ("hub", "saved", "memory")} | {
        "4.6": variant("4.6", "glm46v")
    }
    passing = variant("hub", "glm4v", seed=1)

    def test_turns_are_transformers(self, made: Checkpoint) -> None:
        check_turns(made)


class TestGlmOcr(QuantizedFamilyTests):
    variants = {layout: variant(layout, "glm_ocr", layout=layout) for layout in ("hub", "saved", "memory")} | {
        "tied": variant("tied", "glm_ocr", tie=True)
    }
    passing = variant("hub", "glm_ocr", seed=1)

    def test_turns_are_transformers(self, made: Checkpoint) -> None:
        check_turns(made)
