"""Nothing leaves the device, and nothing is written to the home folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgevlm

ROOT = Path(edgevlm.__file__).parent.parent

OURS = """
import sys
events = []
sys.addaudithook(lambda name, args: events.append(name) if name.startswith("socket.") else None)
from edgevlm.bundle.manifest import open_bundle
from edgevlm.generate.loop import GenerateOptions, Pipeline
from edgevlm.runtimes import open_runtime
bundle = open_bundle(sys.argv[1])
answer = Pipeline(bundle, open_runtime(bundle)).answer([], "What?", GenerateOptions(max_tokens=3))
import os
links = []
if os.path.isdir("/proc/self/fd"):
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            pass
sockets = [link for link in links if link.startswith("socket:")]
print(answer.timings.answer_tokens, events, sockets)
"""

STOCK = """
import sys
import numpy
import onnxruntime
path = sys.argv[1] + "/onnx/embed_tokens.onnx"
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
session.run(None, {"input_ids": numpy.zeros((1, 1), numpy.int64)})
"""


def run_child(code: str, bundle: Path, home: Path) -> tuple[str, list[Path]]:
    """Standard output, and every file and folder under the child's home."""
    home.mkdir()
    hidden = ("XDG_", "ORT_", "HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    environment |= {"HOME": str(home), "USERPROFILE": str(home), "LOCALAPPDATA": str(home)}
    command = [sys.executable, "-c", code, str(bundle)]
    child = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr
    return child.stdout, sorted(home.rglob("*"))


def test_running_a_bundle_writes_nothing_at_home_and_opens_no_socket(tiny_bundle, tmp_path):
    output, written = run_child(OURS, tiny_bundle, tmp_path / "home")
    assert written == []
    assert output.split(maxsplit=1) == ["3", "[] []\n"]


def test_the_stock_import_would_have_written(tiny_bundle, tmp_path):
    """The control: without it, the test above could pass on a build that has no telemetry to turn off."""
    _, written = run_child(STOCK, tiny_bundle, tmp_path / "home")
    if not written:
        pytest.skip("this build of onnxruntime writes nothing at home: there is nothing to turn off")
    assert any("deviceid" in path.name for path in written)
