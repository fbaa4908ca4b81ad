"""ONNX Runtime's integer products are exact on CPUs with VNNI and without, and where they are not the gate says so."""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from integer_products import case, saturating_product, widening_product

from edgevlm.bundle.manifest import open_bundle
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.runtimes.ort import products as ort_products
from edgevlm.runtimes.ort.products import EXACT, product_errors, session_options, signed_saturates
from edgevlm.runtimes.ort.session import import_onnxruntime
from edgevlm.verify import runtime as gate_runtime
from edgevlm.verify.gate import run_gate

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


def test_a_model_of_the_kernels_shows_which_form_saturates() -> None:
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


class Saturating:
    """A session on a CPU that saturates, for the file that asks the CPU."""

    def __init__(self, model: bytes, options: Any, **_: Any) -> None:
        real = import_onnxruntime().InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.run_exactly = real.run
        arrays = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load_from_string(model).graph.initializer}
        self.codes = arrays["DynamicQuantizeMatMul codes"]
        try:
            self.turned = options.get_session_config_entry("session.x64quantprecision") == "1"
        except RuntimeError:  # not set
            self.turned = False

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        found = self.run_exactly(names, feeds)
        if not self.turned:
            x = np.rint(feeds["x"] * 255).astype(np.int64)
            found[names.index("DynamicQuantizeMatMul")] = saturating_product(x, self.codes) / 255
        return found


@pytest.fixture
def saturating(monkeypatch: pytest.MonkeyPatch) -> Any:
    engine = SimpleNamespace(SessionOptions=import_onnxruntime().SessionOptions, InferenceSession=Saturating)
    monkeypatch.setattr(gate_runtime, "import_onnxruntime", lambda: engine)
    return engine


def test_the_file_that_asks_the_cpu_is_valid() -> None:
    onnx.checker.check_model(ort_products._model(), full_check=True)


def test_a_cpu_that_saturates_is_found_and_mended(saturating: Any) -> None:
    assert signed_saturates(saturating)
    assert product_errors(saturating, session_options(saturating, unsigned=False))["DynamicQuantizeMatMul"] > 0.4
    row, _stock = gate_runtime.check_products()
    assert row.passed and row.note.startswith("signed weights saturate on this CPU")


def test_the_gate_names_a_product_that_saturates(
    saturating: Any, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ExportOptions(str(tiny_checkpoint), tmp_path / "out", quantize="int8", gate=False)
    bundle = open_bundle(export_model(options).folder)
    monkeypatch.setattr(gate_runtime, "signed_saturates", lambda ort: False)  # the planted fault: nobody looks
    (row,) = run_gate(bundle).failures()
    assert (row.target, row.check, row.where) == (
        "onnx", "integer products, largest relative error", "DynamicQuantizeMatMul",
    )  # fmt: skip
    assert row.measured > 0.4 and row.note == "DynamicQuantizeMatMul saturates on this CPU"
