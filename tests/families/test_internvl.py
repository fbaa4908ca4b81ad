"""InternVL 2.5, 3 and 3.5: layer scale, tiles by ratio, Qwen2 and Qwen3 decoders, both layouts."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import internvl

sys.path.insert(0, str(Path(__file__).parent))
from harness import QuantizedFamilyTests, Variant

from edgevlm.types import F32


def views(inputs: dict[str, Any]) -> list[F32]:
    """(tiles of all pictures, 3, S, S)."""
    return list(inputs["pixel_values"])


def _variant(layout: str, decoder: str) -> Variant:
    build = partial(internvl.build, layout=layout, decoder=decoder)
    # The remote code puts a system message of its own before every conversation.
    system = internvl.REMOTE_SYSTEM if layout == "remote" else None
    return Variant(f"{layout}-{decoder}", build, internvl.load_processor, views, system=system)


VARIANTS = {"hub": _variant("hub", "qwen2"), "qwen3": _variant("hub", "qwen3")} | {
    f"{layout}-{decoder}": _variant(layout, decoder)
    for layout in ("saved", "memory", "remote")
    for decoder in ("qwen2", "qwen3")
}


class TestInternVL(QuantizedFamilyTests):
    variants = VARIANTS
    passing = VARIANTS["remote-qwen3"]
