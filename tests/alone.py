"""Exports in a process of their own: what they took, and which of the gate's rows they missed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

# Exports in a process where torch and transformers cannot be imported, and prints what it took.
ALONE = r"""
import json, sys, time
from pathlib import Path
for name in ("torch", "transformers", "optimum"):
    sys.modules[name] = None
from edgevlm.errors import GateError
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.io.processor import peak_memory
start = time.monotonic()
model, out, quantize, gate, target = sys.argv[1:]
try:
    report = export_model(ExportOptions(model, Path(out), (target,), quantize, gate=gate == "gate")).report
except GateError as error:
    report = error.report
rows = report.rows if report else []
missed = [row.check for row in rows if not row.passed]
print(json.dumps({"seconds": time.monotonic() - start, "peak": peak_memory(), "rows": len(rows), "missed": missed}))
"""


def export_alone(model: Path, out: Path, quantize: str, gate: str, target: str = "onnx") -> dict[str, Any]:
    command = [sys.executable, "-c", ALONE, str(model), str(out), quantize, gate, target]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
