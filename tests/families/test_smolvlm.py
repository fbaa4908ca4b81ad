"""SmolVLM, SmolVLM2 and Idefics3, as their files are on the Hub and as transformers 5 saves them."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from build_smolvlm import build_tiny, join_newlines, load_model, load_processor

sys.path.insert(0, str(Path(__file__).parent))
from harness import FamilyTests, Variant

from edgevlm.types import F32


def views(inputs: dict[str, Any]) -> list[F32]:
    """(1, views of all pictures, 3, S, S)."""
    return list(inputs["pixel_values"][0])


def build(folder: Path, **options: Any) -> Any:
    join_newlines(build_tiny(folder, **options))
    return load_model(folder)


GRANITE = {
    "model_type": "granite", "embedding_multiplier": 2.0, "residual_multiplier": 0.7, "attention_multiplier": 0.2,
    "logits_scaling": 1.5,
}  # fmt: skip
VARIANTS = {
    "hub": Variant("hub", build, load_processor, views),
    "idefics3": Variant("idefics3", partial(build, family="idefics3", seed=1), load_processor, views),
    "saved": Variant("saved", partial(build, published=False, tie=False), load_processor, views),
    "granite": Variant("granite", partial(build, family="idefics3", decoder=GRANITE), load_processor, views),
}


class TestSmolVLM(FamilyTests):
    variants = VARIANTS
