"""Exports at the widths of published models, a few layers deep: memory stays near the largest tensor."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from alone import export_alone
from wide import WIDE, write_wide


@pytest.mark.heavy
@pytest.mark.parametrize("target", ["onnx", "gguf", "coreml"])
@pytest.mark.parametrize("name", WIDE)
def test_memory_at_true_width(tmp_path: Path, name: str, target: str) -> None:
    if (name, target) == ("PaliGemma-3B", "gguf"):
        pytest.skip("llama.cpp lacks its mask")
    shapes = write_wide(tmp_path / "wide", name)
    largest = 4 * max(map(math.prod, shapes.values()))
    done = export_alone(tmp_path / "wide", tmp_path / "out", "int4", "no-gate", target)
    assert done["peak"] < 2 * largest + 500e6, (done, largest)
