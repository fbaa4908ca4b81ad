"""The gate's results as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.io.console import table
from edgevlm.io.text import printable


def gate_table(report: dict[str, Any]) -> str:
    """`GateReport.to_dict()`, one line per check, missed bounds marked; the result last."""
    rows = []
    for row in report["rows"]:
        bound = "" if row["bound"] is None else f"{row['bound']:.6g}"
        measured = "no number" if row["measured"] is None else f"{row['measured']:.6g}"
        result = "MISSED" if not row["passed"] else "ok" if bound else ""
        rows.append((row["target"], row["check"], measured, bound, result, row["note"]))
    missed = sum(not row["passed"] for row in report["rows"])
    verdict = "Gate passed." if report["passed"] else f"Gate failed: {missed} of {len(rows)} bounds missed."
    lines = [verdict, *(printable(str(note)) for note in report.get("notes") or ())]
    return "\n".join([table(rows, ("target", "check", "measured", "bound", "", "")), *lines])


def read_bounds(words: Sequence[str]) -> dict[str, float]:
    """`--bound NAME=X` options; the names are checked by edgevlm.verify.gate.GateOptions."""
    bounds = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            bounds[name.strip().replace("-", "_")] = float(value)
        except ValueError:
            raise EdgeVLMError(f"The bound '{word}' has no number: write it as in --bound kl=0.1.") from None
    return bounds
