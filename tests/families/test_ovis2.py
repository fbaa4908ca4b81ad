"""Ovis2: a visual vocabulary, tokens around pictures with embeddings of their own, the smallest covering grid."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import ovis2

sys.path.insert(0, str(Path(__file__).parent))
from harness import QuantizedFamilyTests, Variant

from edgevlm.types import F32


def views(inputs: dict[str, Any]) -> list[F32]:
    """(tiles of all pictures, 3, S, S)."""
    return list(inputs["pixel_values"])


VARIANTS = {
    "hub": Variant("hub", ovis2.build, ovis2.load_processor, views),
    "saved": Variant("saved", partial(ovis2.build, layout="saved"), ovis2.load_processor, views),
    "untied": Variant("untied", partial(ovis2.build, tied=False), ovis2.load_processor, views),
}


class TestOvis2(QuantizedFamilyTests):
    variants = VARIANTS
    passing = VARIANTS["hub"]
