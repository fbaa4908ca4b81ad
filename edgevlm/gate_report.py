"""What the gate found: one row per check."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One check. `bound` is None where a figure is reported and not judged."""

    target: str
    check: str
    measured: float
    bound: float | None
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class GateReport:
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    def first_failure(self) -> str:
        row = next(row for row in self.rows if not row.passed)
        return f"{row.target}, {row.check}: {row.measured:.6g} against {row.bound:.6g} {row.note}".rstrip()

    def to_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, "rows": [asdict(row) for row in self.rows]}
