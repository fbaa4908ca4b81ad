"""Keys and values of 8 bits: the engine keeps what its definition says, in a quarter of the memory."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_models import LAYOUT, WIDTH, Drawn, clip, gemma, logits, sharing

from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.bundle.weights import ShippedWeights
from edgevlm.cli import edgevlm
from edgevlm.errors import EdgeVLMError
from edgevlm.export.cache_steps import step_of
from edgevlm.export.calibrate.plan import CalibrationOptions
from edgevlm.export.onnx_.emit import check_onnx, write_onnx
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.export.quantize.recipe import make_recipe
from edgevlm.export.quantize.round import quantize
from edgevlm.models.eager import round8
from edgevlm.models.spec import Decoder, Rope, states, with_cache
from edgevlm.runtimes import open_runtime
from edgevlm.runtimes.ort.runtime import OrtDecoder
from edgevlm.runtimes.ort.session import import_onnxruntime
from edgevlm.runtimes.ort.states import PassedCache, SharedCache
from edgevlm.types import F32
from edgevlm.verify.reference import cosine


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("kv") / "bundle"
    result = export_model(ExportOptions(str(tiny_checkpoint), out, quantize="int4", kv_cache="int8"))
    assert result.report is not None and result.report.passed
    return open_bundle(out)


values = arrays.arrays(np.float32, (2, 5, 3), elements=st.floats(-300, 300, width=32))
steps = arrays.arrays(np.float32, (2, 1, 3), elements=st.floats(2**-10, 4, width=32))


@given(values, steps)
def test_a_rounded_value_is_the_nearest_code(x: Any, step: Any) -> None:
    """Against numpy's own rounding of the exact quotient, in float64."""
    codes = np.rint(x.astype(np.float64) / step).clip(-128, 127)
    found = round8(x, step)
    off = np.abs(found / step - codes)
    assert (off <= 1).all() and (off[np.abs(x / step - np.floor(x / step) - 0.5) > 1e-3] < 1e-3).all()
    inside = np.abs(x) <= 127 * step
    assert (np.abs(found - x)[inside] <= np.broadcast_to(0.50001 * step, x.shape)[inside]).all()


@given(arrays.arrays(np.float32, 7, elements=st.floats(0, 2**20, width=32)))
def test_steps_hold_the_largest_value_and_little_more(largest: Any) -> None:
    step = step_of(largest).astype(np.float64)
    assert (127 * step >= largest * 1.0999).all()
    assert (127 * step <= np.maximum(largest * 1.1 * 2**0.25, 127e-6 * 2**0.25) * 1.0001).all()
    again = step_of(np.nextafter(largest, np.float32(np.inf)))  # a sum in another order
    assert (step_of(largest) == again).mean() >= 6 / 7


DECODERS: dict[str, Decoder] = {
    "plain": clip().decoder,
    "windows and caps": replace(gemma(), ropes={"main": Rope(1e4, 16)}),
    "pictures that see themselves": replace(gemma(), ropes={"main": Rope(1e4, 16)}, mask="image"),
}


class Stepped(Drawn):
    """Steps that cut a few of the values, too."""

    def read(self, name: str) -> F32:
        found = super().read(name)
        return np.float32(0.01) + np.abs(found) * np.float32(0.01) if name.endswith("_step") else found


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(("suffix", "make"), [("", SharedCache), ("_portable", PassedCache)])
def test_logits_are_the_references(tmp_path: Path, name: str, suffix: str, make: Any) -> None:
    """A prompt in parts, then tokens, in both forms; without rounding the answers are others."""
    spec = clip(with_cache(DECODERS[name], "int8"))
    weights, rng = Stepped(spec), np.random.default_rng(2)
    write_onnx(tmp_path, spec, weights, make_recipe("fp32"), lambda name: quantize(weights.read(name), "fp32", name))
    ort = import_onnxruntime()
    session = ort.InferenceSession(str(tmp_path / f"decoder_model_merged{suffix}.onnx"))
    width = spec.decoder.embed_width
    embeds = rng.normal(0, 1, (LAYOUT.length + 3, width)).astype(np.float32)
    wanted = logits(spec, weights, embeds, LAYOUT, keep=4)
    cache = make(ort, spec.decoder, [session])
    decoder = OrtDecoder(None, [session], cache, spec.decoder, "CPU", rounds=True, part=9)
    found = [decoder.forward(embeds[: LAYOUT.length], LAYOUT)]
    found += [decoder.forward(embeds[i : i + 1]) for i in range(LAYOUT.length, len(embeds))]
    assert min(cosine(a, b) for a, b in zip(found, wanted, strict=True)) > 0.99999
    if make is SharedCache:
        assert {buffer.dtype for buffer in cache._buffers.values()} == {np.dtype(np.int8)}
    floats = replace(spec, decoder=with_cache(spec.decoder, "float32"))
    assert cosine(wanted, logits(floats, weights, embeds, LAYOUT, keep=4)) < 0.9999


def test_layers_that_read_others_are_refused(tmp_path: Path) -> None:
    spec = clip(with_cache(sharing(), "int8"))
    with pytest.raises(EdgeVLMError, match="which ONNX Runtime cannot where these have 8 bits"):
        check_onnx(spec)


def test_the_bundle_keeps_a_quarter_and_answers_as_its_reference(bundle: Bundle, tiny_bundle: Path) -> None:
    spec = bundle.manifest.spec.decoder
    assert {state.dtype for state in states(spec)} == {"int8"}
    assert not (bundle.folder / "genai_config.json").exists()  # onnxruntime-genai would feed floats
    sizes = []
    for each in (bundle, open_bundle(tiny_bundle)):
        runtime = open_runtime(each, "onnxruntime", threads=1)
        runtime.decoder.forward(np.zeros((300, WIDTH + 16), np.float32))
        sizes.append(sum(buffer.nbytes for buffer in runtime.decoder._cache._buffers.values()))
        assert runtime.decoder.rounds is True or each is not bundle
        runtime.close()
    assert sizes[1] == 4 * sizes[0] > 0


def test_steps_are_shipped_weights(bundle: Bundle) -> None:
    """Steps are weights like others: where a file's differ, the shipped reference and the engine move together."""
    weights = ShippedWeights(bundle)
    found = [weights.read(f"decoder.layers.0.{side}_step") for side in "kv"]
    assert all(step.shape == (2 * 16,) and (step > 0).all() for step in found)


def test_verify_holds_the_bundle_to_the_original(bundle: Bundle, tiny_checkpoint: Path) -> None:
    done = CliRunner().invoke(edgevlm, ["verify", str(bundle.folder), "--model", str(tiny_checkpoint)])
    assert done.exit_code == 0 and "Gate passed." in done.stderr, done.output
    told = CliRunner().invoke(edgevlm, ["info", str(bundle.folder)])
    assert "context 2048, keys and values of 8 bits" in told.output


@pytest.mark.parametrize("preset", ["latency", "balanced"])
def test_presets_and_calibration(tiny_checkpoint: Path, tmp_path: Path, preset: str) -> None:
    """Both decoders of `latency` share the cache; a calibration folds weights before steps are found."""
    made = CalibrationOptions(method="awq") if preset == "balanced" else None
    out = tmp_path / "out"
    result = export_model(ExportOptions(str(tiny_checkpoint), out, preset=preset, kv_cache="int8", calibration=made))
    assert result.report is not None and result.report.passed


@pytest.mark.parametrize("targets", [("gguf",), ("onnx", "coreml")])
def test_other_targets_are_refused(tiny_checkpoint: Path, tmp_path: Path, targets: tuple[str, ...]) -> None:
    with pytest.raises(EdgeVLMError, match="Keys and values of 8 bits are for ONNX alone"):
        ExportOptions(str(tiny_checkpoint), tmp_path / "out", targets=targets, kv_cache="int8")
    with pytest.raises(EdgeVLMError, match="A cache of 'int3' is not available: choose one of float32, int8"):
        ExportOptions(str(tiny_checkpoint), tmp_path / "out", kv_cache="int3")
