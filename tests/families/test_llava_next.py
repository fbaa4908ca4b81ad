"""LLaVA-NeXT with CLIP and SigLIP, on Mistral, Vicuna, Qwen2 and Granite."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import linked

sys.path.insert(0, str(Path(__file__).parent))
from harness import SIZES, FamilyTests, QuantizedFamilyTests, Variant

from edgevlm.inputs.packing import Packing
from edgevlm.inputs.rules import BestGrid
from edgevlm.inputs.spec import ImageSpec
from edgevlm.types import F32
from edgevlm.verify.stock import stock_note

LONG = [*SIZES, (200, 1), (1, 200), (4100, 60)]


def views(inputs: dict[str, Any]) -> list[F32]:
    """(pictures, views, 3, S, S), padded to the picture with most views by black ones, which are exactly 0."""
    return [view for picture in inputs["pixel_values"] for view in picture if view.any()]


def variant(name: str, **options: Any) -> Variant:
    shared = {key: value for key, value in options.items() if key in ("kind", "text", "tower", "most")}
    return Variant(name, partial(linked.build, **options), partial(linked.load_processor, **shared), views, LONG)


LAYOUTS = {name: variant(name, layout=name) for name in ("hub", "saved", "memory")}
GRANITE: dict[str, Any] = {"text": "granite", "tower": "siglip", "layers": [-4, -3, -1]}


class TestLlavaNext(FamilyTests):
    variants: ClassVar = LAYOUTS | {"vicuna": variant("vicuna", text="llama")}


class TestLlavaNextWithSiglip(QuantizedFamilyTests):
    variants: ClassVar = {"qwen2": variant("qwen2", text="qwen2", tower="siglip")}
    passing = variant("passing", text="qwen2", tower="siglip", seed=2)


class TestGraniteVision(FamilyTests):
    variants: ClassVar = {
        "granite": variant("granite", **GRANITE),
        "tied": variant("tied", layout="saved", tie=True, **GRANITE),
    }


def test_llama_cpp_alone_is_said_to_pack_nothing() -> None:
    image = ImageSpec(2, BestGrid(48, ((1, 2),)), "bicubic", (0, 0, 0), 1 / 255, (0, 0, 0), (1, 1, 1), 8)
    assert "without newlines" in stock_note("mlp", replace(image, packing=Packing()))
    assert "newlines" not in stock_note("mlp", image)
