"""Palettes against the optimum of one-dimensional k-means, and in CoreML packages against coremltools' own reader."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgevlm.bundle.qtensor import PALETTES
from edgevlm.errors import EdgeVLMError
from edgevlm.export.pipeline import ExportOptions
from edgevlm.export.quantize.palettes import ROWS
from edgevlm.export.quantize.recipe import Form, make_recipe
from edgevlm.export.quantize.round import quantize

RNG = np.random.default_rng(0)
KINDS = sorted(PALETTES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("values", "bound"),
    [
        (RNG.standard_normal(4096), 1.1),
        (RNG.uniform(-1, 1, 4096), 1.1),
        (RNG.standard_t(3, 4096), 1.1),
        (RNG.lognormal(0, 1, 4096), 1.3),
    ],
    ids=["normal", "uniform", "heavy tails", "one-sided"],
)
def test_the_error_is_near_the_least_possible(kind: str, values: np.ndarray, bound: float) -> None:
    """coremltools carries an exact solver (Wu 1991); ours may lose a tenth to it, more where the only tail is long."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    kmeans = pytest.importorskip("coremltools._deps.kmeans1d", reason="coremltools is not installed")
    weight = values.astype(np.float32).reshape(ROWS[kind], -1)
    tensor = quantize(weight, kind, "w")
    assert tensor.palette is not None and tensor.palette.shape == (1, 1 << PALETTES[kind])
    ours = np.square(tensor.dequantize() - weight, dtype=np.float64).mean()
    labels, means = kmeans.cluster(weight.reshape(-1), 1 << PALETTES[kind])
    best = np.square(np.array(means)[labels] - weight.reshape(-1)).mean()
    assert best < ours < bound * best


@settings(max_examples=100, deadline=None)
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        elements=st.floats(-60000, 60000, width=32),
    ),
    st.sampled_from(KINDS),
)
def test_every_value_gets_its_nearest_entry(weight: np.ndarray, kind: str) -> None:
    tensor = quantize(weight, kind, "w")
    assert tensor.palette is not None and tensor.scale is None and np.isfinite(tensor.palette).all()
    assert tensor.codes.dtype == np.uint8 and tensor.codes.max() < 1 << PALETTES[kind]
    group = len(weight) // len(tensor.palette)
    assert len(weight) % len(tensor.palette) == 0 and ROWS[kind] % group == 0
    error = np.abs(tensor.dequantize() - weight).reshape(len(tensor.palette), -1)
    entries = tensor.palette.astype(np.float32)
    nearest = np.abs(weight.reshape(len(entries), -1, 1) - entries[:, None]).min(-1)
    np.testing.assert_allclose(error, nearest, rtol=1e-5, atol=1e-2 * np.spacing(np.float32(60000)))


def test_few_values_are_held_exactly() -> None:
    weight = RNG.choice(np.array([-2.0, -0.5, 0.0, 0.25, 1.0], np.float32), (32, 64))
    for kind in KINDS:
        np.testing.assert_array_equal(quantize(weight, kind, "w").dequantize(), weight)
    np.testing.assert_array_equal(quantize(np.zeros((3, 5), np.float32), "palette6", "w").dequantize(), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_packages_hold_what_was_written(tmp_path: Path, kind: str) -> None:
    """Matrices of different groups in one operation; read back by us, by coremltools, and executed."""
    pytest.importorskip("coremltools", reason="coremltools is not installed")
    from coremltools.converters.mil.frontend.milproto.load import load

    from edgevlm.export.coreml_.mil_ops import MilOps
    from edgevlm.export.coreml_.package import load_coremltools, save_package
    from edgevlm.export.coreml_.store import WeightStore
    from edgevlm.runtimes.mil.evaluator import MilEvaluator

    weights = {"a.q.weight": RNG.standard_normal((64, 48)), "a.k.weight": RNG.standard_normal((20, 48))}
    tensors = {name: quantize(values.astype(np.float32), kind, name) for name, values in weights.items()}
    expected = np.concatenate([tensor.dequantize() for tensor in tensors.values()])

    class NoBias:
        def read(self, name: str) -> np.ndarray:
            raise KeyError(name)

        def __contains__(self, name: object) -> bool:
            return False

    mil = load_coremltools()
    placeholder = mil.mb.placeholder((1, 2, 48), dtype=mil.types.fp16)
    with mil.Function({"x": placeholder}, opset_version=mil.ct.target.iOS18) as function:
        ops = MilOps(mil, WeightStore(NoBias(), tensors.__getitem__))
        function.set_outputs(ops.linear(function.inputs["x"], ("a.q", 64), ("a.k", 20)))
    save_package(mil, {"main": function}, tmp_path / "p.mlpackage")

    x = np.eye(48, dtype=np.float32)[None, :2]
    q, k = MilEvaluator(tmp_path / "p.mlpackage").run({"x": x}).values()
    np.testing.assert_array_equal(np.concatenate([q[0], k[0]], axis=1), expected.T[:2])
    model = mil.ct.models.MLModel(str(tmp_path / "p.mlpackage"), skip_model_load=True)
    spec = model.get_spec()
    program = load(spec, spec.specificationVersion, model.weights_dir)
    constexpr = next(op for op in program.functions["main"].operations if op.op_type == "constexpr_lut_to_dense")
    np.testing.assert_array_equal(constexpr.materialized_val_inference(), expected)


def test_palettes_are_for_coreml_alone() -> None:
    recipe = make_recipe("palette6")
    assert (recipe.vision, recipe.projector, recipe.decoder) == (Form("palette6"), Form("int8"), Form("palette6"))
    assert recipe.embed == Form("int8") and make_recipe("palette4", "size").projector == Form("palette4")
    with pytest.raises(EdgeVLMError, match="embedding table has no palettes"):
        make_recipe("int8", "balanced", {"embed": "palette6"})
    for targets in (("onnx",), ("onnx", "coreml"), ("gguf",)):
        with pytest.raises(EdgeVLMError, match="palette6 is a form that CoreML alone can hold"):
            ExportOptions("default", Path("b"), targets, "int8", components={"vision": "palette6"})
