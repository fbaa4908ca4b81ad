"""Janus-Pro: as DeepSeek-VL, with a system prompt of its processor and tokens around pictures."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import janus

sys.path.insert(0, str(Path(__file__).parent))
from harness import FamilyTests, Variant

from edgevlm.types import F32


def views(inputs: dict[str, Any]) -> list[F32]:
    """(pictures, 3, S, S)."""
    return list(inputs["pixel_values"])


VARIANTS = {
    layout: Variant(layout, partial(janus.build, layout=layout), janus.load_processor, views)
    for layout in ("hub", "saved")
} | {"three": Variant("three", partial(janus.build, depth=3), janus.load_processor, views)}


class TestJanus(FamilyTests):
    variants = VARIANTS
