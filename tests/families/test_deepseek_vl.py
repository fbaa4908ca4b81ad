"""DeepSeek-VL 1.3B: SigLIP, two linear maps, a Llama decoder, pictures padded to a square."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import deepseek_vl

sys.path.insert(0, str(Path(__file__).parent))
from harness import Checkpoint, Variant, check_features, check_prompt, check_tokens, check_views

from edgevlm.types import F32


def views(inputs: dict[str, Any]) -> list[F32]:
    """(pictures, 3, S, S)."""
    return list(inputs["pixel_values"])


VARIANTS = {
    layout: Variant(layout, partial(deepseek_vl.build, layout=layout), deepseek_vl.load_processor, views)
    for layout in ("hub", "saved", "memory")
}
PICTURES = ("none", "one", "several")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(VARIANTS["hub"], tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module", params=VARIANTS)
def any_made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(VARIANTS[request.param], tmp_path_factory.mktemp(request.param))


def test_views_are_transformers_pixels(made: Checkpoint) -> None:
    check_views(made)


@pytest.mark.parametrize("pictures", PICTURES)
def test_prompts_and_tokens_are_transformers(made: Checkpoint, pictures: str) -> None:
    check_prompt(made, pictures)
    check_tokens(made, pictures, "onnx", 64)


def test_features_are_transformers(made: Checkpoint) -> None:
    check_features(made, "several")


@pytest.mark.heavy
@pytest.mark.parametrize("pictures", PICTURES)
def test_every_layout_on_every_engine(any_made: Checkpoint, pictures: str) -> None:
    check_prompt(any_made, pictures)
    check_tokens(any_made, pictures, "onnx", 64)
    check_tokens(any_made, pictures, "coreml", 32)
