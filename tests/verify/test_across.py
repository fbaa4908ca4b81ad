"""The table over all engines of a bundle: what it measures, what it blames, and what it warns of."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from edgevlm.bundle.manifest import open_bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.generate.loop import GenerateOptions, Pipeline
from edgevlm.inputs.rules import TilesThenWhole
from edgevlm.runtimes import open_runtime
from edgevlm.runtimes.llama.names import SHUFFLE_LINEAR
from edgevlm.runtimes.mil.blob import blob_span
from edgevlm.runtimes.mil.file import open_package
from edgevlm.verify import across
from edgevlm.verify.across import HEAD, verify_across
from edgevlm.verify.gate import picture_folder
from edgevlm.verify.stock import stock_note, stock_plan, stock_warnings

COFFEE = picture_folder() / "coffee.jpg"


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return open_bundle(tiny_bundle)


class Spoiled:
    """An engine whose one component is wrong: both its encoder and its decoder."""

    def __init__(self, runtime, component):
        self._runtime, self._component = runtime, component
        self._rng = np.random.default_rng(0)
        self.encoder = self.decoder = self

    def __getattr__(self, name):
        return getattr(self._runtime.decoder, name)

    def close(self):
        self._runtime.close()

    def _noise(self, component, values, size):
        if component != self._component:
            return values
        return values + self._rng.normal(0, size, values.shape).astype(np.float32)

    def encode(self, views):
        return [self._noise("encoder", features, 0.1) for features in self._runtime.encoder.encode(views)]

    def embed(self, ids):
        return self._noise("embeddings", self._runtime.decoder.embed(ids), 0.01)

    def forward(self, embeds, layout=None):
        return self._noise("decoder", self._runtime.decoder.forward(embeds, layout), 1.0)

    def step(self, token):
        return self._noise("tokens", self._runtime.decoder.step(token), 30.0)


def test_onnx_runtime_equals_the_reference(bundle):
    steps = []
    report = verify_across(bundle, [COFFEE], tokens=6, threads=1, progress=lambda *step: steps.append(step))
    assert report.agreed and report.tensors == 0 and report.skipped == () and report.warnings == ()
    assert [(row.case, row.prefix, row.agreement) for row in report.rows] == [
        ("coffee.jpg, 1 tile", 6, 1.0),
        ("coffee.jpg, 5 tiles", 6, 1.0),
    ]
    assert all(len(line) == len(HEAD) for line in report.table())
    assert json.loads(json.dumps(report.to_dict()))["agreed"] is True
    assert steps == [("across", i, 4) for i in range(5)]


def test_the_reference_answer_is_the_eager_engines_own(bundle, monkeypatch):
    """What every engine is told is what the loop generates greedily on the eager runtime."""
    seen = []
    real = across._run
    monkeypatch.setattr(across, "_run", lambda *args: seen.append(real(*args)) or seen[-1])
    verify_across(bundle, [COFFEE], tokens=6, tiles=1, threads=1)
    ask = GenerateOptions(max_tokens=6)
    answer = Pipeline(bundle, open_runtime(bundle, "eager")).answer([COFFEE], across.QUESTION, ask, max_tiles=1)
    told = seen[0].choices()[: len(answer.ids)]
    assert tuple(told) == answer.ids


def test_four_engines_in_one_table_and_a_changed_code_is_named(gguf_checkpoint, tmp_path):
    """All three targets of one export; then one byte of one matrix in the CoreML package."""
    pytest.importorskip("coremltools", reason="coremltools is not installed (pip install '.[coreml]')")
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: it compiles for minutes")
    options = ExportOptions(str(gguf_checkpoint), tmp_path / "b", ("onnx", "gguf", "coreml"), "int8", gate=False)
    bundle = open_bundle(export_model(options).folder)
    report = verify_across(bundle, [COFFEE], tokens=4, tiles=1, threads=1)
    engines = ("eager", "onnxruntime", "llama.cpp", "coreml")
    assert [(row.first, row.second) for row in report.rows] == [
        (first, second) for i, second in enumerate(engines) for first in engines[:i]
    ]
    assert report.different == () and report.skipped == () and report.tensors == 67 + 35

    package = open_package(bundle.folder / "coreml" / "Decoder.mlpackage")
    op = package.find("main", "decoder_layers_1_down_weight")
    _, start, _ = blob_span(package.weight_file, op.inputs["data"][0])
    with package.weight_file.open("r+b") as stream:
        stream.seek(start)
        code = stream.read(1)[0]
        stream.seek(start)
        stream.write(bytes([code ^ 1]))
    report = verify_across(bundle, [COFFEE], tokens=1, tiles=1, threads=1)
    assert report.different == ("coreml: decoder.layers.1.down.weight",) and not report.agreed
    assert {row.second for row in report.rows if row.divergence == "weights"} == {"coreml"}


@pytest.mark.parametrize("component", ["embeddings", "encoder", "decoder", "tokens"])
def test_the_first_wrong_component_is_named(bundle, monkeypatch, component):
    monkeypatch.setattr(across, "open_runtime", lambda *a, **k: Spoiled(open_runtime(*a, **k), component))
    report = verify_across(bundle, [COFFEE], tokens=6, tiles=1, threads=1)
    assert [row.divergence for row in report.rows] == [component]
    assert not report.agreed


def test_an_engine_that_is_missing_is_named_and_left_out(gguf_bundle, monkeypatch):
    def missing(bundle, name, **options):
        if name == "llama.cpp":
            raise EdgeVLMError("llama.cpp could not be imported: install it.")
        return open_runtime(bundle, name, **options)

    monkeypatch.setattr(across, "open_runtime", missing)
    report = verify_across(gguf_bundle("fp32"), [COFFEE], tokens=2, tiles=1, threads=1)
    assert report.skipped == ("llama.cpp: llama.cpp could not be imported: install it.",)
    assert {row.second for row in report.rows} == {"onnxruntime"} and report.tensors == 67 and report.different == ()
    bundle = gguf_bundle("fp32")
    alone = dataclasses.replace(bundle.manifest, targets={"gguf": bundle.manifest.targets["gguf"]})
    with pytest.raises(EdgeVLMError, match="No engine of this bundle can be compared: llama"):
        verify_across(dataclasses.replace(bundle, manifest=alone), [COFFEE], tokens=2)


def test_mistakes_are_one_sentence(bundle, tmp_path):
    with pytest.raises(EdgeVLMError, match="no picture to compare on"):
        verify_across(bundle, [])
    with pytest.raises(EdgeVLMError, match="both should be 1 or more"):
        verify_across(bundle, tokens=0)
    with pytest.raises(EdgeVLMError, match="does not exist"):
        verify_across(bundle, [tmp_path / "missing.png"])
    for targets in ({}, {"coreml": {}}, {"gguf": None}):
        manifest = dataclasses.replace(bundle.manifest, targets=targets)
        with pytest.raises(EdgeVLMError, match="export"):
            verify_across(dataclasses.replace(bundle, manifest=manifest), [COFFEE])


# --- what stock llama.cpp would do -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (448, 299), (256, 256), (97, 61), (700, 30)])
def test_the_stock_plan_of_a_tiled_model_is_nearly_the_specs(size):
    """llama.cpp follows Hugging Face's rule when the file names the longest edge; the spec is that rule."""
    stock, ours = stock_plan(*size, 64, 256), TilesThenWhole(64, 256, 4096, 2, split=True).views(*size)
    assert stock.grid == max(view.place for view in ours[:-1])
    assert stock.resizes == tuple((step.width, step.height) for step in ours[0].steps[:-1])


def test_warnings_carry_the_numbers(gguf_bundle, tmp_path):
    single, tiled = gguf_bundle("int4", "default"), gguf_bundle("int4")
    assert tiled.image_spec.rule.split and not single.image_spec.rule.split
    assert stock_warnings(single, COFFEE) == [
        "coffee.jpg (448 x 299): llama.cpp without edgevlm would encode 2 tiles (128 image tokens) "
        "where the spec has 1 (64)."
    ]
    assert stock_warnings(tiled, COFFEE) == []

    photo = Image.new("RGBA", (300, 200), (255, 0, 0, 90))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "phone.png", exif=exif)
    found = stock_warnings(tiled, tmp_path / "phone.png")
    assert all(text.startswith("phone.png (300 x 200): llama.cpp without edgevlm would ") for text in found)
    reasons = [text.split(" would ")[1] for text in found]
    assert reasons[-2:] == [
        "ignore its EXIF orientation.",
        "drop its transparency instead of laying it over RGB 255, 255, 255.",
    ]
    Image.new("L", (1, 900)).save(tmp_path / "strip.png")
    assert "refuse it, because it scales it to no pixels" in stock_warnings(tiled, tmp_path / "strip.png")[0]


def test_a_bundle_says_what_stock_llama_cpp_does(gguf_bundle):
    single, tiled = gguf_bundle("int4", "default"), gguf_bundle("int4")
    said = {bundle.folder.name: bundle.manifest.targets["gguf"].alone for bundle in (single, tiled)}
    for bundle in (single, tiled):  # as predicted for a picture
        overview = any(" tiles (" in warning for warning in stock_warnings(bundle, COFFEE))
        assert ("adds an overview" in said[bundle.folder.name]) == overview
    assert said["tiny-int4"] == (
        "llama.cpp without edgevlm ignores EXIF orientation and transparency: its answers about pictures can differ "
        "from edgevlm's."
    )
    bicubic = dataclasses.replace(tiled.image_spec, resample="bicubic")
    assert "resamples with lanczos where this model has bicubic" in stock_note(SHUFFLE_LINEAR, bicubic)
    assert "a way of its own" in stock_note("mlp", tiled.image_spec)


def test_a_bundle_without_gguf_has_no_warnings(bundle):
    assert stock_warnings(bundle, COFFEE) == []
