"""ONNX Runtime's integer products are exact on CPUs with VNNI and without, and where they are not the gate says so."""

import itertools
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from integer_products import case, widening_product
from saturating_engine import checkpoint_of_large_codes, saturating_product, use_saturating_engine

from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.bundle.weights import ShippedWeights
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.runtimes import open_runtime
from edgevlm.runtimes.ort import products as ort_products
from edgevlm.runtimes.ort import runtime as ort_runtime
from edgevlm.runtimes.ort.products import EXACT, product_errors, session_options, signed_saturates
from edgevlm.verify import runtime as gate_runtime
from edgevlm.verify.bounds import bound_of
from edgevlm.verify.gate import _cases
from edgevlm.verify.reference import Reference, cosine
from edgevlm.verify.report import Row

# A CPU with AVX2 and without VNNI.
EMULATOR = ("qemu-x86_64", "-cpu", "Haswell")


def measure(*emulator: str) -> dict[str, Any]:
    command = [*emulator, sys.executable, str(Path(__file__).with_name("integer_products.py"))]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def check(found: dict[str, Any]) -> None:
    saturates, signed, turned = found["native"]
    assert max(turned.values()) <= EXACT and (max(signed.values()) <= EXACT) != saturates
    assert max(signed[name] for name in signed if name.startswith("MatMulNBits")) <= EXACT
    random = found["random"]
    assert random["uint8"] <= EXACT and random["int8, turned"] <= EXACT
    # What is wrong is wrong as the model of the kernel says, to the last bit.
    assert random["int8, clipped" if saturates else "int8"] <= EXACT
    assert random["int8" if saturates else "int8, clipped"] > 0.1


def test_products_are_exact_on_this_cpu() -> None:
    check(measure())


def needs_emulator() -> pytest.MarkDecorator:
    missing = shutil.which(EMULATOR[0]) is None or platform.machine() not in ("x86_64", "AMD64")
    return pytest.mark.skipif(missing, reason="needs an x86-64 Python and qemu-x86_64 (Debian: apt install qemu-user)")


@pytest.mark.heavy
@needs_emulator()
def test_products_are_exact_without_vnni() -> None:
    found = measure(*EMULATOR)
    assert found["native"][0], "the emulated CPU should be one whose kernel saturates"
    check(found)


SEEDS = [0, 1, 2]
# Features of the bundle's first picture, saved by the path in argv[2]; prints whether this CPU saturates.
ENCODE = """
import sys, numpy as np
from edgevlm.bundle.manifest import open_bundle
from edgevlm.runtimes import open_runtime
from edgevlm.runtimes.ort.products import signed_saturates
from edgevlm.runtimes.ort.session import import_onnxruntime
from edgevlm.verify.gate import _cases
bundle = open_bundle(sys.argv[1])
(features,) = open_runtime(bundle, "onnxruntime").encoder.encode(_cases(bundle)[0].views[:1])
np.save(sys.argv[2], features)
print(signed_saturates(import_onnxruntime()))
"""


@pytest.mark.heavy
@pytest.mark.parametrize("seed", SEEDS)
def test_a_default_export_of_the_256m_shape_passes(builder: ModuleType, tmp_path: Path, seed: int) -> None:
    model = builder.build_256m(tmp_path / "model", seed)
    report = export_model(ExportOptions(str(model), tmp_path / "out")).report
    assert report is not None and report.passed
    features = [row.measured for row in report.rows if row.check.startswith("features")]
    assert len(features) == 4 and min(features) > 0.9995
    assert not open_bundle(tmp_path / "out").manifest.recipe["outliers"]


@pytest.mark.heavy
@needs_emulator()
@pytest.mark.parametrize("seed", SEEDS)
def test_an_encoder_of_the_256m_shape_passes_without_vnni(builder: ModuleType, tmp_path: Path, seed: int) -> None:
    """All of its matrices, on a picture of 128 pixels: at 512, the emulator takes over ten minutes for one."""
    encoder = {"vision_size": 768, "vision_mlp": 3072, "vision_layers": 12, "image_size": 128, "patch_size": 16}
    model = builder.build_tiny(tmp_path / "model", seed, **encoder)
    # Without the gate, which would judge int4 of the tiny random decoder behind it, too.
    result = export_model(ExportOptions(str(model), tmp_path / "out", gate=False))
    bundle = open_bundle(result.folder)
    reference = Reference(bundle.manifest.spec, ShippedWeights(bundle), bundle.image_spec)
    (wanted,) = reference.features(_cases(bundle)[0].views[:1])
    command = [*EMULATOR, sys.executable, "-c", ENCODE, str(bundle.folder), str(tmp_path / "features.npy")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "True"
    assert cosine(np.load(tmp_path / "features.npy"), wanted) >= bound_of("onnx", "dynamic").features


@pytest.mark.heavy
@needs_emulator()
@pytest.mark.parametrize(
    "tests",
    [
        "export/test_onnx.py",
        "models/test_eager.py",
        "verify/test_gate.py::test_every_recipe_passes",
    ],
)
def test_the_suite_passes_without_vnni(tests: str) -> None:
    command = [*EMULATOR, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"{Path(__file__).parent}/{tests}"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]


def clipped_pairs(x: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """`saturating_product` as the instructions are described, pair by pair."""
    x, codes = x.astype(np.int64), codes.astype(np.int64)
    pairs = x[:, 0::2, None] * codes[0::2] + x[:, 1::2, None] * codes[1::2]
    return np.clip(pairs, -32768, 32767).sum(1)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 0.3, 0.05]))
@settings(max_examples=30, deadline=None)
def test_the_model_of_the_kernel_clips_pairs(seed: int, power: float) -> None:
    rng = np.random.default_rng(seed)
    x = np.rint(255 * rng.uniform(0, 1, (5, 64)) ** power).astype(np.int64)
    codes = np.rint(127 * np.sign(rng.uniform(-1, 1, (64, 9))) * rng.uniform(0, 1, (64, 9)) ** power).astype(np.int8)
    assert np.array_equal(saturating_product(x, codes), clipped_pairs(x, codes))


def test_the_model_of_the_kernel_shows_which_form_saturates() -> None:
    x, codes, _ = case(0)
    exact = x.astype(np.int64) @ codes
    assert np.abs(saturating_product(x, codes) - exact).max() > 0.1 * np.abs(exact).max()
    turned = widening_product(x, codes.view(np.uint8) ^ np.uint8(128))
    assert np.array_equal(turned - 128 * x.sum(1, keepdims=True), exact)
    # Whatever the numbers: uint8 factors fit int16, and a sum of n products is at most 255 * 255 n.
    assert 255 * 255 * 32768 < 2**31
    # Signed codes are exact in 16 bits only up to 64.
    half = np.clip(codes, -64, 64)
    assert np.array_equal(saturating_product(x, half), x.astype(np.int64) @ half)


@pytest.mark.parametrize("width", [512, 768])
def test_the_model_of_the_kernel_has_the_errors_that_were_measured(width: int) -> None:
    """On a CPU without VNNI, onnxruntime's worst errors were 4.8 of 91 (768 wide) and 3.3 of 108: 3 to 5 percent.

    Of normal weights and activations; none with codes to 63.
    """
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((64, width)), rng.standard_normal((width, 96))
    step = np.ptp(x) / 255
    whole = np.clip(np.rint((x - x.min()) / step), 0, 255).astype(np.uint8)
    for largest, least, most in ((127, 0.03, 0.12), (63, 0.0, 0.0)):
        scale = np.abs(weights).max(0) / largest
        codes = np.rint(weights / scale).astype(np.int8)
        error = (saturating_product(whole, codes) - whole.astype(np.int64) @ codes) * scale * step
        assert least <= np.abs(error).max() / np.abs(x @ weights).max() <= most


@pytest.fixture
def saturating(monkeypatch: pytest.MonkeyPatch) -> Any:
    return use_saturating_engine(monkeypatch)


def test_the_file_that_asks_the_cpu_is_valid() -> None:
    onnx.checker.check_model(ort_products._model(), full_check=True)


def test_a_cpu_that_saturates_is_found_and_mended(saturating: Any) -> None:
    assert signed_saturates(saturating)
    assert product_errors(saturating, session_options(saturating, unsigned=False))["DynamicQuantizeMatMul"] > 0.4
    row, stock = gate_runtime.check_products()
    assert row.passed and row.note.startswith("signed weights saturate on this CPU")
    assert stock.passed and stock.bound is None and stock.measured > 0.4


SHAPES = {  # of the encoder's one layer
    "tiny": {"vision_size": 512, "vision_mlp": 512},
    "as in SmolVLM-256M": {"vision_size": 768, "vision_mlp": 3072},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gate_of_an_encoder_on_a_cpu_that_saturates(
    saturating: Any, builder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    """Codes that all are +-127: it passes as sessions are made there, and fails without the option."""
    model = builder.build_tiny(tmp_path / "normal", patch_size=16, vision_layers=1, text_layers=1, **SHAPES[shape])
    model = checkpoint_of_large_codes(model, tmp_path / "large")
    bundle = open_bundle(export_model(ExportOptions(str(model), tmp_path / "out", gate=False)).folder)
    assert bundle.manifest.recipe["vision"]["dynamic"] and not bundle.manifest.recipe["outliers"]
    assert all(row.passed for row in encoder_rows(bundle))
    for module in (gate_runtime, ort_runtime):  # the planted fault: nobody looks
        monkeypatch.setattr(module, "signed_saturates", lambda ort: False)
    products, _, features = encoder_rows(bundle)
    assert not products.passed and products.measured > 0.4 and products.where == "DynamicQuantizeMatMul"
    assert products.note == "DynamicQuantizeMatMul saturates on this CPU"
    assert not features.passed and features.measured < 0.99


def encoder_rows(bundle: Bundle) -> list[Row]:
    """The gate's rows of integer products, embeddings, and features of one tile."""
    reference = Reference(bundle.manifest.spec, ShippedWeights(bundle), bundle.image_spec)
    bounds = [bound_of("onnx", form) for form in ("dynamic", "int8")]
    runtime = open_runtime(bundle, "onnxruntime")
    rows = gate_runtime.check_runtime(bundle, "onnx", runtime, reference, _cases(bundle)[:1], [], *bounds)
    return [next(gate_runtime.check_products()), *itertools.islice(rows, 2)]
