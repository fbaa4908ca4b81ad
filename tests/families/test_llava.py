"""LLaVA 1.5 with a CLIP tower and a SentencePiece tokenizer."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import llava15

sys.path.insert(0, str(Path(__file__).parent))
from harness import Checkpoint, QuantizedFamilyTests, Variant, check_views

from edgevlm.types import F32


def views(inputs: dict[str, Any]) -> list[F32]:
    """(pictures, 3, S, S)."""
    return list(inputs["pixel_values"])


def _variant(name: str, **options: Any) -> Variant:
    return Variant(name, partial(llava15.build, **options), llava15.load_processor, views)


VARIANTS = {name: _variant(name, layout=name) for name in ("hub", "saved", "memory")} | {
    "metaspace": _variant("metaspace", form="metaspace"),
    "pad": _variant("pad", pad=True),
}


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(VARIANTS["pad"], tmp_path_factory.mktemp("pad"))


def test_padded_views_are_transformers_pixels(padded: Checkpoint) -> None:
    check_views(padded)


class TestLlava(QuantizedFamilyTests):
    variants = VARIANTS
    passing = VARIANTS["metaspace"]
