"""CoreML packages on what executes them on this system: Apple's CoreML on macOS, elsewhere the evaluator."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from edgevlm.bundle.manifest import open_bundle
from edgevlm.runtimes import open_runtime
from edgevlm.verify.gate import picture_folder

pytest.importorskip("coremltools", reason="coremltools is not installed (pip install '.[coreml]')")
ROOT = Path(__file__).parent.parent.parent


def edgevlm(*words: str | Path) -> str:
    done = subprocess.run([sys.executable, "-m", "edgevlm", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.heavy
def test_the_shipped_model_passes_its_gate_and_answers(tmp_path: Path) -> None:
    bundle, rows = tmp_path / "bundle", tmp_path / "rows.json"
    edgevlm("export", "default", "--target", "coreml", "-o", bundle)
    edgevlm("verify", bundle, "--model", "default", "--json", rows)
    judged = [row for row in json.loads(rows.read_text())["rows"] if row["target"] == "coreml"]
    assert any(row["check"].startswith("features of 13 tiles") for row in judged)
    assert any(row["check"] == "tiled, KL divergence" for row in judged)
    assert all(row["passed"] for row in judged)
    with closing(open_runtime(open_bundle(bundle), "coreml")) as runtime:
        assert runtime.device.startswith("CoreML (" if platform.system() == "Darwin" else "CPU (evaluator")
    picture = picture_folder() / "scene-things.png"
    assert "yellow" in edgevlm("run", bundle, picture, "What colour is the chair?", "--runtime", "coreml").lower()
