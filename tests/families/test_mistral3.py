"""Mistral3, Pixtral in LLaVA's layout and LightOnOCR: a tower for any grid, rows of image tokens with breaks."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import mistral3

sys.path.insert(0, str(Path(__file__).parent))
from harness import SIZES, Checkpoint, FamilyTests, Variant

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


YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512,
    "beta_fast": 8.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
MINISTRAL: dict[str, Any] = {"model_type": "ministral3", "rope_parameters": YARN}


class TestMinistral3(FamilyTests):
    """The same with a Ministral 3: its RoPE is stretched; its context ends where its queries would be scaled."""

    variants: ClassVar = variants("mistral3", text_options=MINISTRAL, tie=True)

    def test_the_context_is_the_original_one(self, made: Checkpoint) -> None:
        assert made.spec.decoder.context_length == 512


class TestMistralWithAWindow(FamilyTests):
    variants: ClassVar = variants("mistral3", text_options={"sliding_window": 24})
    engines: ClassVar = {"onnx": 64, "coreml": 32}  # llama.cpp's architecture has no windows


class TestPixtral(FamilyTests):
    variants: ClassVar = variants("llava")


class TestLightOnOcr(FamilyTests):
    variants: ClassVar = variants("lighton_ocr", tie=True)
