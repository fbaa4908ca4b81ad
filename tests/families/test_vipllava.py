"""VipLLaVA: five layers of a CLIP tower, a norm over all their channels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).parent))
from dataclasses import replace

from harness import FamilyTests, Variant
from test_llava_next import variant

from edgevlm.types import F32


def views(inputs: dict[str, Any]) -> list[F32]:
    """(pictures, 3, S, S)."""
    return list(inputs["pixel_values"])


def _variant(layout: str) -> Variant:
    return replace(variant(layout, kind="vipllava", text="llama", layers=[-2, -3, 1], layout=layout), views=views)


class TestVipLlava(FamilyTests):
    variants: ClassVar = {layout: _variant(layout) for layout in ("hub", "saved", "memory")}
