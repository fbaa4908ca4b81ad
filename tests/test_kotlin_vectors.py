"""The vectors of the Kotlin SDK are what the Python package says today."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import PIL
import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "android_demo" / "tools"
if not TOOLS.is_dir():
    pytest.skip("only the repository has the Kotlin SDK", allow_module_level=True)


def check(script: str) -> None:
    done = subprocess.run([sys.executable, TOOLS / script, "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"run python android_demo/tools/{script}\n{done.stderr[-2000:]}"


@pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="the oracle is Pillow 13; older ones resize rows first"
)
def test_inputs() -> None:
    check("make_input_vectors.py")


@pytest.mark.heavy
def test_prompts() -> None:
    check("make_layout_vectors.py")
