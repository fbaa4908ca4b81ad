"""Mistral3, Pixtral in LLaVA's layout and LightOnOCR: a tower for any grid, rows of image tokens with breaks."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import mistral3

sys.path.insert(0, str(Path(__file__).parent))
from harness import SIZES, FamilyTests, Variant

from edgevlm.types import F32

LAYOUTS = ("hub", "saved", "memory")
LONG = [*SIZES, (128, 1), (1, 128), (4100, 60), (129, 128)]


def views(inputs: dict[str, Any]) -> list[F32]:
    """(pictures, 3, H, W), padded at the bottom and at the right to the largest."""
    sizes = inputs["image_sizes"]
    return [pixels[:, :high, :wide] for pixels, (high, wide) in zip(inputs["pixel_values"], sizes, strict=True)]


def variants(kind: mistral3.Kind, **options: Any) -> dict[str, Variant]:
    build, load = partial(mistral3.build, kind=kind, **options), partial(mistral3.load_processor, kind=kind)
    return {f"{kind}-{layout}": Variant(layout, partial(build, layout=layout), load, views, LONG) for layout in LAYOUTS}


class TestMistral3(FamilyTests):
    variants: ClassVar = variants("mistral3")


class TestPixtral(FamilyTests):
    variants: ClassVar = variants("llava")


class TestLightOnOcr(FamilyTests):
    variants: ClassVar = variants("lighton_ocr", tie=True)
