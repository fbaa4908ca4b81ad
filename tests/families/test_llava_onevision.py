"""LLaVA-OneVision: SigLIP and Qwen2, with maps of features that are scaled down."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).parent))
from harness import QuantizedFamilyTests
from test_llava_next import variant

OPTIONS: dict[str, Any] = {"kind": "llava_onevision", "text": "qwen2", "tower": "siglip", "layers": -1}


class TestLlavaOnevision(QuantizedFamilyTests):
    """With room for two views' features, those of four tiles or three are scaled down; nine leave all as they are."""

    variants: ClassVar = {
        layout: variant(layout, layout=layout, **OPTIONS) for layout in ("hub", "saved", "memory")
    } | {"nine": variant("nine", most=9, **OPTIONS)}
    passing = variant("passing", layout="hub", seed=2, **OPTIONS)
