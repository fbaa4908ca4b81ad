"""FastVLM: a tower of convolutions, a Qwen2 decoder."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import fast_vlm

sys.path.insert(0, str(Path(__file__).parent))
from harness import FamilyTests, Variant

from edgevlm.types import F32


def views(inputs: dict[str, Any]) -> list[F32]:
    """(pictures, 3, S, S)."""
    return list(inputs["pixel_values"])


class TestFastVlm(FamilyTests):
    variants: ClassVar = {
        name: Variant(name, partial(fast_vlm.build, layout=name), fast_vlm.load_processor, views)
        for name in ("hub", "saved")
    } | {"tied": Variant("tied", partial(fast_vlm.build, tie=True), fast_vlm.load_processor, views)}
