"""HunyuanOCR: framed rows of features, halves of heads that turn by axes of their own, norms behind RoPE."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import hunyuan_vl

sys.path.insert(0, str(Path(__file__).parent))
from harness import SIZES, Checkpoint, FamilyTests, Variant, check_turns

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_model, read_prompt_spec
from edgevlm.errors import EdgeVLMError
from edgevlm.types import F32


def views(inputs: dict[str, Any]) -> list[F32]:
    """Patches row by row, each (3, 8, 8), back to pictures."""
    found, at = [], 0
    for _, rows, cols in inputs.get("image_grid_thw", np.empty((0, 3), int)).tolist():
        patches = inputs["pixel_values"][at : at + rows * cols].reshape(rows, cols, 3, 8, 8)
        found.append(patches.transpose(2, 0, 3, 1, 4).reshape(3, rows * 8, cols * 8))
        at += rows * cols
    return found


def variant(name: str, **options: Any) -> Variant:
    build = partial(hunyuan_vl.build, **options)
    return Variant(name, build, hunyuan_vl.load_processor, views, [*SIZES, (1, 150)])


VARIANTS = {layout: variant(layout, layout=layout) for layout in ("hub", "saved", "memory")} | {
    "three axes, untied": variant("three axes, untied", layout="saved", tie=False, sections=(6, 4, 6))
}


class TestHunyuanOcr(FamilyTests):
    variants = VARIANTS
    engines: ClassVar[dict[str, int]] = {"onnx": 64, "coreml": 32}

    def test_turns_are_transformers(self, made: Checkpoint) -> None:
        check_turns(made)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"rope_scaling": {"xdrope_section": [8, 8]}}, "expected three or four whole numbers"),
        ("config.json", {"rope_scaling": {"xdrope_section": [8, 8, 8]}}, "does not add up to half of head_dim"),
        ("config.json", {"rope_scaling": {"type": "yarn"}}, "type = 'yarn', expected"),
        ("config.json", {"attention_head_dim": 16}, "attention_head_dim = 16, expected the head_dim beside it"),
        ("config.json", {"vision_config": {"interpolate_mode": "bicubic"}}, "interpolate_mode = 'bicubic', expected"),
        ("config.json", {"vision_config": {"temporal_patch_size": 2}}, "temporal_patch_size = 2, expected"),
        ("processor_config.json", {"cat_extra_token": False}, "cat_extra_token = False, expected true"),
    ],
)
def test_what_it_does_not_take_is_refused(tmp_path: Path, file: str, change: dict[str, Any], message: str) -> None:
    hunyuan_vl.build(tmp_path)
    path = tmp_path / file
    data = json.loads(path.read_text()) if path.exists() else {}
    for key, value in change.items():
        data[key] = data[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(data))
    with pytest.raises(EdgeVLMError, match=message):
        spec, _ = read_model(open_checkpoint(str(tmp_path)))
        read_prompt_spec(tmp_path, spec)
