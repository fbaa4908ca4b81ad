"""The gate's bounds and its report: one row per check, divergence by layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from edgevlm.types import F32

LEVELS = ("numbers", "tokens", "answers")


@dataclass(frozen=True)
class Bound:
    """What a runtime may differ from the reference by, both on the same weights."""

    features: float  # least cosine of an image token's features
    logits: float  # least cosine of logits
    near_tie: float  # a token other than the reference's is excused below this gap between the two logits
    kl: float  # largest mean divergence of the next token's distribution, nats
    agreement: float  # least share of positions with the reference's choice, teacher-forced
    answers: float  # largest loss of score on a set of questions, as a share of all


@dataclass(frozen=True)
class Loss:
    """What quantization may cost against the original's weights, both in the reference. None: reported, not judged."""

    features: float | None
    logits: float | None
    kl: float | None
    agreement: float | None
    answers: float | None


@dataclass(frozen=True)
class Row:
    """One check. `bound` is None where a figure is reported and not judged.

    where: the component, layer or file that the check points at, such as "decoder.layers.3.q.weight".
    """

    target: str
    check: str
    measured: float
    bound: float | None
    passed: bool
    note: str = ""
    level: str = "numbers"  # one of LEVELS
    where: str = ""


@dataclass(frozen=True)
class GateReport:
    """rows: in the order of judging. layers: per comparison, each named value's difference (see `divergence`).

    golden: inputs and features as computed here, which `edgevlm verify` holds later runs to. processor: of the machine
    that judged. notes: sentences on what no bound judges. advice: one on what would likely pass, after a failure.
    """

    rows: tuple[Row, ...]
    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    golden: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    advice: str = ""

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    def failures(self) -> list[Row]:
        return [row for row in self.rows if not row.passed]

    def first_failure(self) -> str:
        row = self.failures()[0]
        bound = "" if row.bound is None else f": {row.measured:.6g} against {row.bound:.6g}"
        found = next((r.where for r in self.rows if r.target == row.target and r.check.startswith("first ")), "")
        place = f"; first at {found}" if found else ""
        return f"{row.target}, {row.check}{bound} {row.note}".rstrip() + place

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a measurement that is no number is None."""
        rows = [asdict(row) | {"measured": _finite(row.measured)} for row in self.rows]
        layers = {name: {key: _finite(v) for key, v in values.items()} for name, values in self.layers.items()}
        facts = {"processor": self.processor, "notes": list(self.notes), "advice": self.advice}
        return {"passed": self.passed, "rows": rows, "layers": layers, "golden": self.golden, **facts}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def at_least(
    target: str, check: str, measured: float, bound: float | None, note: str = "", level: str = "numbers"
) -> Row:
    passed = bound is None or measured >= bound
    return Row(target, check, measured, bound, passed, note or _unjudged(bound), level)


def at_most(
    target: str, check: str, measured: float, bound: float | None, note: str = "", level: str = "numbers"
) -> Row:
    """A row for an upper bound; a measurement that is not a number fails it."""
    passed = bound is None or measured <= bound
    return Row(target, check, measured, bound, passed, note or _unjudged(bound), level)


def _unjudged(bound: float | None) -> str:
    return "" if bound is not None else "reported only"


def kl_divergence(theirs: F32, ours: F32) -> float:
    """Mean over positions of KL(theirs || ours) in nats, from logits (S, V); infinite where a value is not finite."""
    if not (np.isfinite(theirs).all() and np.isfinite(ours).all()):
        return float("inf")
    p, q = (_log_softmax(np.asarray(logits, np.float64)) for logits in (theirs, ours))
    return max(0.0, float((np.exp(p) * (p - q)).sum(-1).mean()))


def _log_softmax(logits: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    shifted = logits - logits.max(-1, keepdims=True)
    whole: np.ndarray[Any, np.dtype[np.float64]] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return whole


def divergence(reference: F32, other: F32) -> float:
    """Root mean square of the difference over that of the reference; infinite for another shape or no numbers."""
    if reference.shape != other.shape or not np.isfinite(other).all():
        return float("inf")
    scale = float(np.sqrt(np.square(reference, dtype=np.float64).mean())) or 1.0
    return float(np.sqrt(np.square(other.astype(np.float64) - reference).mean())) / scale
