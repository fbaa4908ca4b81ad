"""The gate's results as a table for people."""

from __future__ import annotations

from typing import Any

from edgevlm.commands.console import table


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
    return table(rows, ("target", "check", "measured", "bound", "", "")) + f"\n{verdict}"
