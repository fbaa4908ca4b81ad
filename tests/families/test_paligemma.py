"""PaliGemma 1 and 2: prompts that see themselves, soft caps, windows, no chat template."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import paligemma

sys.path.insert(0, str(Path(__file__).parent))
from harness import Checkpoint, FamilyTests, Variant, check_prompt, check_tokens

from edgevlm.errors import EdgeVLMError
from edgevlm.types import F32


def views(inputs: dict[str, Any]) -> list[F32]:
    """(pictures, 3, S, S)."""
    return list(inputs["pixel_values"])


def _variant(layout: str, text: str) -> Variant:
    build = partial(paligemma.build, layout=layout, text=text)
    return Variant(f"{layout}-{text}", build, paligemma.load_processor, views)


VARIANTS = {"hub": _variant("hub", "gemma"), "hub-gemma2": _variant("hub", "gemma2")} | {
    f"{layout}-{text}": _variant(layout, text) for layout in ("saved", "memory") for text in ("gemma", "gemma2")
}


class TestPaliGemma(FamilyTests):
    variants = VARIANTS
    engines: ClassVar = {"onnx": 64, "coreml": 32}  # llama.cpp's attention is causal
    prompts: ClassVar = ("one", "several")  # its processor asks for a picture


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(VARIANTS["hub-gemma2"], tmp_path_factory.mktemp("second"))


def test_soft_caps_and_windows(second: Checkpoint) -> None:
    """Of the second version; its windows are shorter than the prompt, which sees itself all the same."""
    check_prompt(second, "several")
    check_tokens(second, "several", "onnx", 64)


@pytest.mark.parametrize("name", ["hub", "hub-gemma2"])
def test_gguf_is_refused(name: str, tmp_path: Path) -> None:
    made = Checkpoint(VARIANTS[name], tmp_path)
    with pytest.raises(EdgeVLMError, match=r"cannot be written as GGUF: its decoder shows .* causal"):
        made.bundle("fp32", "gguf")
