"""FastVLM: a tower of convolutions, a Qwen2 decoder."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import fast_vlm

sys.path.insert(0, str(Path(__file__).parent))
from harness import SIZES, Checkpoint, FamilyTests, Variant, check_features

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_model
from edgevlm.errors import EdgeVLMError
from edgevlm.types import F32


def views(inputs: dict[str, Any]) -> list[F32]:
    """(pictures, 3, S, S)."""
    return list(inputs["pixel_values"])


LONG = [*SIZES, (200, 1), (1, 200), (4100, 60)]


class TestFastVlmAsItsAuthorsPublishIt(FamilyTests):
    """Pictures are padded to a square; predict.py there is about one at most."""

    variants: ClassVar = {
        name: Variant(name, partial(fast_vlm.build, layout="own", tie=tie), fast_vlm.load_own_processor, views, LONG)
        for name, tie in (("own", False), ("own-tied", True))
    }
    prompts: ClassVar = ("none", "one")

    def test_features_are_transformers(self, made: Checkpoint) -> None:
        check_features(made, "one")

    def test_branches_are_refused(self, tmp_path: Path) -> None:
        fast_vlm.build(tmp_path, layout="own")
        path = tmp_path / "model.safetensors"
        tensors = {name.replace("reparam_conv", "rbr_conv.0.conv"): t for name, t in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
        with pytest.raises(EdgeVLMError, match="the branches that it was trained with"):
            read_model(open_checkpoint(str(tmp_path)))


class TestFastVlm(FamilyTests):
    variants: ClassVar = {
        name: Variant(name, partial(fast_vlm.build, layout=name), fast_vlm.load_processor, views)
        for name in ("hub", "saved")
    } | {"tied": Variant("tied", partial(fast_vlm.build, tie=True), fast_vlm.load_processor, views)}
