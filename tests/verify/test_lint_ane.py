"""The Neural Engine lint: each rule fires on a program that breaks it, and our own `ane` packages are clean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_model
from edgevlm.errors import EdgeVLMError
from edgevlm.export.coreml_ import CoreMLOptions, write_coreml
from edgevlm.export.coreml_.package import load_coremltools, save_package
from edgevlm.export.quantize.model import QuantizedModel
from edgevlm.export.quantize.recipe import make_recipe
from edgevlm.verify import lint_ane as lint
from edgevlm.verify.lint_ane import LintReport, lint_bundle, lint_package

ct = pytest.importorskip("coremltools", reason="coremltools is not installed (pip install '.[coreml]')")


@pytest.fixture(scope="module")
def mil() -> Any:
    return load_coremltools()


def check(
    mil: Any, folder: Path, shapes: dict[str, Any], body: Callable[[Any, dict[str, Any]], Any], states: Any = None
) -> LintReport:
    """Author a one-function package and lint it."""
    inputs = {name: mil.mb.placeholder(shape, dtype=mil.types.fp16) for name, shape in shapes.items()}
    for name, shape in (states or {}).items():
        inputs[name] = mil.mb.state_tensor_placeholder(shape, dtype=mil.types.fp16)
    with mil.Function(inputs, opset_version=mil.ct.target.iOS18) as function:
        function.set_outputs([body(mil.mb, function.inputs)])
    path = folder / "x.mlpackage"
    save_package(mil, {"main": function}, path)
    return lint_package(path)


def rules(report: LintReport) -> set[str]:
    return {finding.rule for finding in report.findings}


def test_operations(mil: Any, tmp_path: Path) -> None:
    def body(mb: Any, i: dict[str, Any]) -> Any:
        square = mb.mul(x=i["x"], y=i["x"], name="square")
        mean = mb.reduce_mean(x=square, axes=[-1], keep_dims=True)
        y = mb.mul(x=i["x"], y=mb.rsqrt(x=mean))
        y = mb.cast(x=mb.cast(x=y, dtype="fp32"), dtype="fp16")
        y = mb.add(x=y, y=np.full((1, 4, 8), -np.inf, np.float16))
        values, _ = mb.topk(x=y, k=2, axis=-1)
        return values

    report = check(mil, tmp_path, {"x": (1, 4, 8)}, body)
    assert rules(report) >= {"square-overflow", "fp32-island", "infinite-constant", "cpu-operation"}
    assert not report.passed
    by_rule = {finding.rule: finding for finding in report.findings}
    assert by_rule["square-overflow"].where == "main/square"
    assert "coreai-models" in by_rule["infinite-constant"].source
    units = report.functions[0].operations
    assert units["square"] == "ane" and "cpu" in units.values()


def test_states(mil: Any, tmp_path: Path) -> None:
    def body(mb: Any, i: dict[str, Any]) -> Any:
        for name in ("a", "b", "c"):
            old = mb.read_state(input=i[name])
            begin, end = [0] * old.rank, [1, 2, 64, 48][: old.rank]
            new = mb.slice_update(x=old, update=i["rows"], begin=begin, end=end)
            kept = mb.coreml_update_state(state=i[name], value=new)
        return mb.reduce_sum(x=kept, axes=[0], keep_dims=True)

    shape = (4, 2, 128, 48)
    report = check(mil, tmp_path, {"rows": (1, 2, 64, 48)}, body, {"a": shape, "b": shape, "c": shape})
    assert rules(report) >= {"state-count", "state-alignment", "update-rows"}
    assert "48" in next(f.message for f in report.findings if f.rule == "state-alignment")


def test_rank_of_states_and_values(mil: Any, tmp_path: Path) -> None:
    def body(mb: Any, i: dict[str, Any]) -> Any:
        return mb.reduce_sum(x=mb.read_state(input=i["s"]), axes=[0], keep_dims=False)

    report = check(mil, tmp_path, {"x": (1, 4)}, body, {"s": (2, 1, 2, 32, 32)})
    assert "state-rank" in rules(report)


def test_large_axis(mil: Any, tmp_path: Path) -> None:
    report = check(mil, tmp_path, {"x": (1, 8)}, lambda mb, i: mb.tile(x=i["x"], reps=[1, 10000]))
    assert "large-axis" in rules(report)
    assert next(iter(report.functions[0].operations.values())) == "cpu"


def test_weights(mil: Any, tmp_path: Path) -> None:
    codes = np.zeros((64, 64), np.int8)

    def blocks(count: int) -> Callable[[Any, dict[str, Any]], Any]:
        def body(mb: Any, i: dict[str, Any]) -> Any:
            weight = mb.constexpr_blockwise_shift_scale(data=codes, scale=np.ones((64, count), np.float16))
            return mb.linear(x=i["x"], weight=weight)

        return body

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert "per-block-weights" in rules(check(mil, tmp_path / "a", {"x": (1, 64)}, blocks(2)))
    per_channel = check(mil, tmp_path / "b", {"x": (1, 64)}, blocks(1))
    # codes, scales, and the zero bias that coremltools adds
    assert per_channel.findings == () and per_channel.functions[0].weight_bytes == 64 * 64 + 128 + 128


def test_palettes(mil: Any, tmp_path: Path) -> None:
    def body(mb: Any, i: dict[str, Any]) -> Any:
        palette = mb.constexpr_lut_to_dense(
            indices=np.zeros((8, 64), np.uint8).astype(mil.types.np_uint4_dtype),
            lut=np.ones((1, 1, 16, 1), np.float16),
        )
        weight = mb.constexpr_blockwise_shift_scale(data=palette, scale=np.ones((8, 1), np.float16))
        y = mb.linear(x=i["x"], weight=weight)
        return mb.add(x=y, y=mb.reduce_sum(x=mb.read_state(input=i["s"])))

    report = check(mil, tmp_path, {"x": (1, 64)}, body, {"s": (1, 1, 32, 32)})
    assert rules(report) == {"palette-scale", "palette4-state"}


def test_package_size(mil: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lint, "MAX_WEIGHTS", 1000)
    weight = np.ones((64, 64), np.float16)
    report = check(mil, tmp_path, {"x": (1, 64)}, lambda mb, i: mb.linear(x=i["x"], weight=weight))
    assert rules(report) == {"package-size"} and report.passed


@pytest.fixture(scope="module")
def bundles(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    spec, weights = read_model(open_checkpoint(str(tiny_checkpoint)))
    made = {}
    for profile, quantize in (("ane", "int8"), ("gpu", "int4")):
        folder = tmp_path_factory.mktemp(profile)
        (folder / "coreml").mkdir()
        recipe = make_recipe(quantize, "size")
        entry = write_coreml(
            folder / "coreml",
            spec,
            weights,
            recipe,
            QuantizedModel(weights, recipe).quantized,
            CoreMLOptions(profile, (64,)),
        )
        targets = SimpleNamespace(targets={"coreml": entry})
        made[profile] = SimpleNamespace(
            folder=folder, manifest=targets, package=lambda relative, folder=folder: folder / relative
        )
    return made


def test_ane_packages_are_predicted_to_stay(bundles: dict[str, Any]) -> None:
    """Clean but for notes on padding. The tiny model's heads are 16 wide, which is what state-alignment is for."""
    vision, decoder = lint_bundle(cast(Any, bundles["ane"]))
    assert vision.passed and vision.functions[0].predicted_ane == 1.0
    assert rules(vision) <= {"padded-axis"}
    assert rules(decoder) <= {"padded-axis", "state-alignment"}
    for function in decoder.functions:
        assert function.predicted_ane > 0.85
        assert {name for name, unit in function.operations.items() if unit == "cpu"} <= {
            name for name in function.operations if name.startswith(("concat", "end"))
        }
    decode, prefill = (next(f for f in decoder.functions if f.name.startswith(n)) for n in ("decode", "prefill"))
    assert decode.rows == 1 and prefill.rows == 32
    assert decode.weight_bytes == prefill.weight_bytes and prefill.bytes_per_token < decode.bytes_per_token
    entry = decoder.to_dict()
    assert entry["predicted"] is True and set(entry["functions"]) == {"decode_ctx64", "prefill_32_ctx64"}


def test_bytes_per_token_are_counted(bundles: dict[str, Any]) -> None:
    """Every weight once, and the whole fixed cache."""
    _, decoder = lint_bundle(cast(Any, bundles["ane"]))
    decode = next(f for f in decoder.functions if f.name == "decode_ctx64")
    assert decode.state_bytes == 2 * 3 * 2 * 64 * 16 * 2  # k and v, layers, kv heads, positions, head size, fp16
    size = (bundles["ane"].folder / "coreml/Decoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    assert 0.8 * size < decode.weight_bytes < size  # the file also has a 64-byte record for each tensor


def test_gpu_packages_are_refused_for_the_neural_engine(bundles: dict[str, Any]) -> None:
    vision, decoder = lint_bundle(cast(Any, bundles["gpu"]))
    assert not vision.passed and not decoder.passed
    assert {"per-block-weights", "dynamic-shape", "cpu-operation"} <= rules(decoder)
    assert decoder.functions[0].predicted_ane == 0.0


def test_bundle_without_coreml() -> None:
    with pytest.raises(EdgeVLMError, match="holds no CoreML packages"):
        lint_bundle(cast(Any, SimpleNamespace(folder="b", manifest=SimpleNamespace(targets={}))))


def test_every_finding_has_a_source() -> None:
    assert all(level in ("error", "warning", "note") and source for level, source in lint.SOURCES.values())


def test_the_document_lists_the_rules() -> None:
    page = (Path(__file__).parents[2] / "docs" / "coreml.md").read_text(encoding="utf-8")
    for rule, (level, source) in lint.SOURCES.items():
        assert f"| `{rule}` | {level} | " in page and f" | {source} |" in page
