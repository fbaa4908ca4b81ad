"""Bits within a budget or a loss: the search over combinations against worked cases, and sizes against real files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_model
from edgevlm.errors import EdgeVLMError
from edgevlm.export.calibrate.choose import (
    Choice,
    choose,
    component_size,
    decoder_choices,
    other_size,
    percent,
    with_choices,
)
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.export.quantize.recipe import COMPONENTS, Form, fit, make_recipe


def offers() -> list[list[Choice]]:
    """Two components: the first is cheap to keep at 8 bits, the second is not."""
    return [
        [Choice("vision", "int4", 10, 0.4), Choice("vision", "int8", 20, 0.01), Choice("vision", "fp16", 40, 0.0)],
        [Choice("decoder", "int4", 100, 0.1), Choice("decoder", "int8", 200, 0.02), Choice("decoder", "fp16", 400, 0)],
    ]


@pytest.mark.parametrize(
    ("limits", "kinds"),
    [
        ({"budget": 1000}, ("fp16", "fp16")),
        ({"budget": 150}, ("fp16", "int4")),
        ({"budget": 125}, ("int8", "int4")),
        ({"budget": 115}, ("int4", "int4")),
        ({"max_loss": 1.0}, ("int4", "int4")),
        ({"max_loss": 0.2}, ("int8", "int4")),
        ({"max_loss": 0.05}, ("int8", "int8")),
        ({"max_loss": 0.0}, ("fp16", "fp16")),
        ({"max_loss": 0.2, "budget": 130}, ("int8", "int4")),
    ],
)
def test_the_best_combination_is_taken(limits: dict[str, float], kinds: tuple[str, str]) -> None:
    assert tuple(c.kind for c in choose(offers(), 5, **limits)) == kinds  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"budget": 100}, "The budget of 100 B is too small: this model takes at least 115 B; allow that much"),
        ({"budget": 125, "max_loss": 0.01}, "at most 1.01 % cannot be had within 0.0 MB: the best is 11.63 %"),
    ],
)
def test_what_cannot_be_had_is_refused(limits: dict[str, float], sentence: str) -> None:
    with pytest.raises(EdgeVLMError, match=sentence):
        choose(offers(), 5, **limits)  # type: ignore[arg-type]


def test_layers_that_gain_most_per_byte_come_first() -> None:
    plain, better = offers()[1][:2]
    made = decoder_choices(plain, better, {"a": (10, 0.1), "b": (10, 0.3), "c": (40, 0.4)})
    assert [c.layers for c in made] == [("b",), ("b", "a")]
    assert [c.size for c in made] == [110, 120]
    assert made[0].loss == pytest.approx(0.02 + 0.08 * (1 - 0.3 / 0.8))


def test_percent_is_the_rise_of_perplexity() -> None:
    assert percent(math.log(1.01)) == "1.00 %"


def test_chosen_layers_reach_the_form() -> None:
    class Shapes:
        def names(self) -> list[str]:
            return ["decoder.layers.0.q.weight", "decoder.layers.1.q.weight", "decoder.layers.10.q.weight"]

        def shape(self, name: str) -> tuple[int, int]:
            return 64, 64

        def is_linear(self, name: str) -> bool:
            return True

    recipe = with_choices(
        make_recipe("int4", "size"),
        [Choice("decoder", "int4", 0, 0.0, ("decoder.layers.1",))],
        Shapes(),  # type: ignore[arg-type]
    )
    assert [recipe.form(name) for name in Shapes().names()] == [Form("int4"), Form("int8"), Form("int4")]


@pytest.mark.parametrize(("kind", "preset"), [("int4", "size"), ("int8", "size"), ("fp16", "size")])
def test_sizes_are_those_of_the_files(tiny_checkpoint: Path, tmp_path: Path, kind: str, preset: str) -> None:
    """The estimate bounds what the ONNX target takes, by no more than the room it leaves for graphs."""
    spec, weights = read_model(open_checkpoint(str(tiny_checkpoint)))
    recipe = fit(make_recipe(kind, preset), weights)
    matrices = sum(component_size(spec, weights, recipe, c, ("onnx",)) for c in COMPONENTS)
    estimate = matrices + other_size(spec, weights, recipe, 0)
    options = ExportOptions(str(tiny_checkpoint), tmp_path / "out", quantize=kind, preset=preset, gate=False)
    out = export_model(options).folder
    actual = sum(path.stat().st_size for path in (out / "onnx").iterdir())
    assert actual <= estimate <= actual + 60_000 * (spec.decoder.num_layers + spec.vision.num_layers)
