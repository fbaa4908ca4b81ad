"""The gate: passes what is right, catches and names what is not, and leaves the user's files alone."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from cases import heavy_but

from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_model
from edgevlm.errors import GateError
from edgevlm.export import pipeline
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.export.quantize.model import QuantizedModel
from edgevlm.export.quantize.recipe import make_recipe
from edgevlm.verify.gate import run_gate
from edgevlm.verify.reference import Reference
from edgevlm.verify.report import GateReport

RECIPES = [("fp32", "balanced"), ("fp16", "balanced"), ("int8", "balanced"), ("int4", "balanced"), ("int4", "size"),
           ("int4", "latency")]  # fmt: skip


@pytest.mark.parametrize(("quantize", "preset"), heavy_but(RECIPES[2:4], RECIPES, several=True))
def test_every_recipe_passes(tiny_checkpoint: Path, tmp_path: Path, quantize: str, preset: str) -> None:
    stages: list[tuple[str, int, int]] = []
    options = ExportOptions(str(tiny_checkpoint), tmp_path / "out", quantize=quantize, preset=preset)
    result = export_model(options, lambda *stage: stages.append(stage))
    report = result.report
    assert report is not None and report.passed
    checks = {row.check for row in report.rows if row.target == "onnx"}
    assert {"features of 1 tile, cosine", "features of 2 tiles, cosine", "features of 13 tiles, cosine"} <= checks
    assert any(row.check.startswith("prefill after") for row in report.rows)
    saved = json.loads((tmp_path / "out/manifest.json").read_text())["gate"]
    assert saved["passed"] and len(saved["rows"]) == len(report.rows)
    assert stages[-1][1] == stages[-1][2]
    if quantize == "fp32":
        tokens = [row for row in report.rows if row.check.endswith("largest logit gap")]
        assert len(tokens) == 4 and all("tokens equal" in row.note for row in tokens)
        assert {row.note for row in tokens[:3]} == {"64 of 64 tokens equal"}


class Fault:
    """A bundle on disk, its source, and a way to judge it again."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        self.folder = folder
        self.spec, self.weights = read_model(open_checkpoint(str(checkpoint)))

    def judge(self) -> GateReport:
        manifest = json.loads((self.folder / "manifest.json").read_text())
        for name in manifest["files"]:  # a fault of ours, not a damaged file: hashes and sizes fit
            path = self.folder / name
            from edgevlm.bundle.manifest import sha256

            manifest["files"][name] = {"size": path.stat().st_size, "sha256": sha256(path)}
        (self.folder / "manifest.json").write_text(json.dumps(manifest))
        bundle, expected = open_bundle(self.folder), QuantizedModel(self.weights, make_recipe("fp32"))
        return run_gate(bundle, original=Reference(self.spec, self.weights, bundle.image_spec), expected=expected)

    def edit_graph(self, name: str, change: Callable[[onnx.ModelProto], None]) -> None:
        path = self.folder / "onnx" / name
        model = onnx.load(path, load_external_data=False)
        change(model)
        onnx.save(model, path)

    def edit_tensor(self, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        entry = json.loads((self.folder / "weights.json").read_text())["tensors"][name]
        assert entry["codes"]["layout"] == "rows"
        shape, offset = entry["shape"], entry["codes"]["offset"]
        with (self.folder / entry["file"]).open("r+b") as stream:
            stream.seek(offset)
            values = np.frombuffer(stream.read(4 * int(np.prod(shape))), np.float32).reshape(shape)
            stream.seek(offset)
            stream.write(np.ascontiguousarray(change(values)).tobytes())


@pytest.fixture
def fault(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> Fault:
    return Fault(tiny_checkpoint, Path(shutil.copytree(tiny_bundle, tmp_path / "bundle")))


def set_attribute(model: onnx.ModelProto, op: str, name: str, value: object) -> None:
    for node in model.graph.node:
        if node.op_type == op:
            for attribute in list(node.attribute):
                if attribute.name == name:
                    node.attribute.remove(attribute)
            node.attribute.append(onnx.helper.make_attribute(name, value))


def swap(model: onnx.ModelProto, first: str, second: str) -> None:
    for node in model.graph.node:
        node.input[:] = [{first: second, second: first}.get(name, name) for name in node.input]


def test_one_changed_weight_is_named(fault: Fault) -> None:
    def change(values: np.ndarray) -> np.ndarray:
        changed = values.copy()
        changed[7] += 0.25
        return changed

    fault.edit_tensor("vision.layers.1.norm2.weight", change)
    report = fault.judge()
    assert not report.passed
    assert "weights that differ" in report.first_failure() and "vision.layers.1.norm2.weight" in report.first_failure()


GRAPH_FAULTS: list[tuple[str, str, Callable[[onnx.ModelProto], None], str]] = [
    ("no rope", "decoder_model_merged.onnx", lambda m: set_attribute(m, "GroupQueryAttention", "do_rotary", 0),
     "prefill"),
    ("rope halves", "decoder_model_merged.onnx", lambda m: swap(m, "rope.cos", "rope.sin"), "prefill"),
    ("wrong norm epsilon", "vision_encoder.onnx",
     lambda m: set_attribute(m, "LayerNormalization", "epsilon", 0.5), "features of 1 tile"),
    ("erf gelu for tanh and flipped", "vision_encoder.onnx",
     lambda m: swap(m, "vision.layers.0.norm1.weight", "vision.layers.0.norm2.weight"), "features of 1 tile"),
    ("shuffled channels", "vision_encoder.onnx",
     lambda m: [set_attribute_of(n) for n in m.graph.node if n.op_type == "Transpose"][-1:], "features of 1 tile"),
]  # fmt: skip


def set_attribute_of(node: onnx.NodeProto) -> None:
    if list(node.attribute[0].ints) == [0, 1, 3, 2, 4, 5]:
        node.attribute[0].ints[:] = [0, 1, 3, 4, 2, 5]


@pytest.mark.parametrize(("file", "change", "check"), [f[1:] for f in GRAPH_FAULTS], ids=[f[0] for f in GRAPH_FAULTS])
def test_graph_faults_are_caught_at_their_component(
    fault: Fault, file: str, change: Callable[[onnx.ModelProto], None], check: str
) -> None:
    fault.edit_graph(file, change)
    report = fault.judge()
    assert not report.passed and report.first_failure().startswith(f"onnx, {check}")


def test_portable_graph_is_judged_too(fault: Fault) -> None:
    fault.edit_graph("decoder_model_merged_portable.onnx", lambda m: swap(m, "rope.cos", "rope.sin"))
    assert fault.judge().first_failure().startswith("onnx portable, prefill")


def test_dropped_tensor_is_named(fault: Fault) -> None:
    path = fault.folder / "weights.json"
    table = json.loads(path.read_text())
    del table["tensors"]["projector.linear.weight"]
    path.write_text(json.dumps(table))
    from edgevlm.errors import EdgeVLMError

    with pytest.raises(EdgeVLMError, match=r"lacks the weight 'projector\.linear\.weight'"):
        fault.judge()


def test_failed_gate_keeps_the_old_bundle_and_shows_the_new_one(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    options = ExportOptions(str(tiny_checkpoint), out, quantize="fp32")
    export_model(replace(options, gate=False))
    before = (out / "manifest.json").read_bytes()
    real = pipeline.run_gate

    def failing(bundle: Bundle, **options: object) -> GateReport:
        report = real(bundle, **options)
        return GateReport((replace(report.rows[0], passed=False), *report.rows[1:]))

    monkeypatch.setattr(pipeline, "run_gate", failing)
    with pytest.raises(GateError, match="The gate failed: onnx, weights that differ") as error:
        export_model(replace(options, force=True))
    assert error.value.report is not None and not error.value.report.passed
    assert (out / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.failed"]
    assert not json.loads((tmp_path / "out.failed/manifest.json").read_text())["gate"]["passed"]
