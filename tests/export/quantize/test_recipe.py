"""Presets, overrides, and the fallback for widths that no block divides."""

from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_model
from edgevlm.errors import EdgeVLMError
from edgevlm.export.quantize.model import QuantizedModel
from edgevlm.export.quantize.recipe import Form, fit, make_recipe


def test_presets_choose_forms_by_component() -> None:
    assert make_recipe("fp16").vision == Form("fp16")
    balanced = make_recipe("int4", "balanced")
    assert (balanced.vision, balanced.decoder, balanced.embed) == (
        Form("int8", dynamic=True),
        Form("int4"),
        Form("int8"),
    )
    assert make_recipe("int4", "size").vision == Form("int4")
    assert make_recipe("int4", "latency").prefill == Form("int8", dynamic=True)
    assert make_recipe("int8", "latency").prefill is None


def test_overrides_replace_one_component() -> None:
    recipe = make_recipe("int4", "balanced", {"vision": "fp16", "embed": "int4"})
    assert (recipe.vision, recipe.embed, recipe.decoder) == (Form("fp16"), Form("int4"), Form("int4"))
    assert make_recipe("fp32", "balanced", {"vision": "int8"}).vision == Form("int8", dynamic=True)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("int3",), "Quantization 'int3' is not available"),
        (("int4", "tiny"), "Preset 'tiny' does not exist"),
        (("int4", "size", {"head": "int8"}), "Component 'head' does not exist"),
        (("int4", "size", {"vision": "int2"}), "Quantization 'int2' is not available"),
    ],
)
def test_refusals(args: tuple, sentence: str) -> None:
    with pytest.raises(EdgeVLMError, match=sentence):
        make_recipe(*args)


def test_only_matrices_are_quantized(tiny_checkpoint: Path) -> None:
    _, weights = read_model(open_checkpoint(str(tiny_checkpoint)))
    model = QuantizedModel(weights, make_recipe("int4", "size"))
    assert weights.is_linear("vision.layers.0.fc1.weight") and weights.is_linear("decoder.embed.weight")
    assert weights.is_linear("projector.linear.weight")
    for name in (
        "vision.patch_embedding.weight",
        "vision.position_embedding",
        "vision.layers.1.norm1.weight",
        "vision.post_norm.weight",
        "decoder.norm.weight",
        "vision.layers.0.fc1.bias",
    ):
        assert not weights.is_linear(name)
    for name in weights.names():
        assert model.quantized(name).kind == ("int4" if weights.is_linear(name) else "fp32")


@pytest.mark.parametrize("tie", [True, False])
def test_roles_are_what_the_names_say(builder: ModuleType, tmp_path: Path, tie: bool) -> None:
    """Roles come from the operations that read a weight; SmolVLM's names happen to say the same."""
    folder = builder.build_tiny(tmp_path / "m", tie=tie, attention_bias=True)
    _, weights = read_model(open_checkpoint(str(folder)))
    others = ("norm", "post_norm", "patch_embedding", "position_embedding")
    for name in weights.names():
        *_, parent, last = name.split(".")
        assert weights.is_linear(name) == (last == "weight" and not parent.startswith(others)), name
        assert not weights.is_linear(name) or len(weights.shape(name)) == 2


def test_widths_outside_blocks_become_fp16() -> None:
    class Shapes:
        shapes: ClassVar = {"vision.layers.0.fc2.weight": (1152, 4304), "decoder.layers.0.q.weight": (64, 64)}

        def names(self) -> list[str]:
            return list(self.shapes)

        def shape(self, name: str) -> tuple[int, ...]:
            return self.shapes[name]

        def is_linear(self, name: str) -> bool:
            return True

    recipe = fit(make_recipe("int4", "size"), Shapes())
    assert recipe.fp16 == ("vision.layers.0.fc2.weight",)
    assert recipe.form("vision.layers.0.fc2.weight") == Form("fp16")
    assert fit(make_recipe("int4", "balanced"), Shapes()).fp16 == ()  # dynamic int8 has no blocks
