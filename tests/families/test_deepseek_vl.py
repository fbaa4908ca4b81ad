"""DeepSeek-VL 1.3B: SigLIP, two linear maps, a Llama decoder, pictures padded to a square."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import deepseek_vl

sys.path.insert(0, str(Path(__file__).parent))
from harness import FamilyTests, Variant

from edgevlm.types import F32


def views(inputs: dict[str, Any]) -> list[F32]:
    """(pictures, 3, S, S)."""
    return list(inputs["pixel_values"])


# Of the seeds 0 to 5, the one whose answers' two best logits are furthest apart: fp16 may turn a near-tie.
VARIANTS = {
    layout: Variant(layout, partial(deepseek_vl.build, seed=4, layout=layout), deepseek_vl.load_processor, views)
    for layout in ("hub", "saved", "memory")
}


class TestDeepSeekVL(FamilyTests):
    variants = VARIANTS
