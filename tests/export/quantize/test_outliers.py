"""Encoders with outliers: what int8 would spoil keeps fp16, everything else keeps its form, and the gate passes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load_file, save_file

from edgevlm.bundle.manifest import open_bundle
from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_image_spec, read_model
from edgevlm.errors import GateError
from edgevlm.export import pipeline
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.export.quantize.outliers import _round, keep_fine, product_error
from edgevlm.export.quantize.recipe import Form, fit, make_recipe
from edgevlm.verify.gate import typical_view
from edgevlm.verify.reference import Reference

CHANNELS = [3, 77, 200, 301, 302, 480]


@pytest.fixture(scope="module")
def wide(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder wide enough for dynamic int8: two layers of 512. Do not change it."""
    options = {"vision_size": 512, "vision_mlp": 512, "patch_size": 16, "text_layers": 1}
    folder: Path = builder.build_tiny(tmp_path_factory.mktemp("wide") / "wide", **options)
    return folder


@pytest.fixture(scope="module")
def with_outliers(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """with_outliers(factor, undone): `wide` with channels of its norms that are `factor` times as large.

    undone: what reads them has columns as many times smaller, so that the model computes what it did.
    """

    def make(factor: float, undone: bool) -> Path:
        folder = tmp_path_factory.mktemp("outliers") / "model"
        shutil.copytree(wide, folder)
        tensors = load_file(folder / "model.safetensors")
        for name, tensor in tensors.items():
            if "vision_model.encoder" in name and "layer_norm" in name:
                tensor[CHANNELS] *= factor
            read = name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "fc1.weight"))
            if undone and read and "vision_model" in name:
                tensor[:, CHANNELS] /= factor
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def chosen(folder: Path, quantize: str = "int4", preset: str = "balanced") -> tuple[str, ...]:
    checkpoint = open_checkpoint(str(folder))
    spec, weights = read_model(checkpoint)
    recipe = fit(make_recipe(quantize, preset), weights)
    image = read_image_spec(checkpoint.folder, spec)
    return keep_fine(recipe, Reference(spec, weights, image), typical_view(image)).outliers


def test_an_encoder_without_outliers_stays_as_it_was(wide: Path, tiny_checkpoint: Path) -> None:
    assert chosen(wide) == chosen(tiny_checkpoint) == chosen(tiny_checkpoint, "int8", "size") == ()


def test_products_that_outliers_flow_into_keep_fp16(with_outliers: Callable[..., Path]) -> None:
    found = chosen(with_outliers(50, undone=True))
    for layer in (0, 1):
        assert {f"vision.layers.{layer}.{part}.weight" for part in ("q", "k", "v", "fc1")} <= set(found)
        assert f"vision.layers.{layer}.fc2.weight" not in found
    recipe = make_recipe("int4")
    assert recipe.form(found[0]) == Form("int8", dynamic=True)
    assert chosen(with_outliers(50, undone=True), "fp16") == ()


def test_an_encoder_that_amplifies_every_error_keeps_fp16_everywhere(with_outliers: Callable[..., Path]) -> None:
    found = chosen(with_outliers(100, undone=False))
    assert sum(name.startswith("vision.layers.") for name in found) == 2 * 6 and "projector.linear.weight" in found


@pytest.mark.heavy
def test_a_default_export_passes_its_gate_with_outliers(
    with_outliers: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the choice it fails, and the setting that the error names would have passed."""
    model = str(with_outliers(50, undone=True))
    report = export_model(ExportOptions(model, tmp_path / "good")).report
    assert report is not None and report.passed and "keep fp16" in report.notes[0]
    recipe = open_bundle(tmp_path / "good").manifest.recipe
    assert recipe["outliers"] and recipe["vision"] == {"kind": "int8", "dynamic": True}
    kinds = {n: e["kind"] for n, e in json.loads((tmp_path / "good/weights.json").read_text())["tensors"].items()}
    assert all(kinds[name] == "fp16" for name in recipe["outliers"]) and kinds["vision.layers.0.fc2.weight"] == "int8"

    monkeypatch.setattr(pipeline, "keep_fine", lambda recipe, *_: recipe)  # the planted fault: nobody looks
    with pytest.raises(GateError, match=r"Try --vision fp16: an export with that would likely pass\.$"):
        export_model(ExportOptions(model, tmp_path / "bad"))
    advised = export_model(ExportOptions(model, tmp_path / "advised", components={"vision": "fp16"})).report
    assert advised is not None and advised.passed


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 100), st.floats(-50, 50))
@settings(max_examples=40, deadline=None)
def test_activations_are_rounded_as_onnx_does(seed: int, size: float, middle: float) -> None:
    x = (np.random.default_rng(seed).standard_normal((3, 64)) * size + middle).astype(np.float32)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 64]) for name in "xy"]
    graph = helper.make_graph(nodes, "round", values[:1], values[1:])
    (theirs,) = ReferenceEvaluator(helper.make_model(graph)).run(None, {"x": x})
    assert np.abs(_round(x, dynamic=True) - theirs).max() <= np.ptp(np.append(x, 0)) / 255 * 1.001
    close = np.isclose(_round(x, dynamic=True), theirs, atol=1e-4 * size)
    assert close.mean() > 0.98  # ties may fall to either side


def test_the_error_of_a_product() -> None:
    rng = np.random.default_rng(0)
    x, matrix = rng.standard_normal((64, 128)).astype(np.float32), rng.standard_normal((32, 128)).astype(np.float32)
    assert product_error(x, matrix, dynamic=True) < 0.02 and product_error(x, matrix, dynamic=False) < 0.02
    x[:, 5] *= 100
    matrix[:, 5] /= 100
    assert product_error(x, matrix, dynamic=True) > 0.2
    assert product_error(np.zeros_like(x), matrix, dynamic=True) == 0
