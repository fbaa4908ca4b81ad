"""What was measured of each bundle on each engine, and what of it can be told apart from the baseline's.

Scores are compared over questions that both runs were asked, times turn by turn within one benchmark; all else is left
uncompared. The decision is that of edgevlm/evaluation/statistics.py.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from edgevlm.bench.worker import STAGES
from edgevlm.evaluation.statistics import LEVEL, Difference, holm, paired_difference, sign_test
from edgevlm.report.gather import Findings, Member, is_number
from edgevlm.report.measure import is_evaluator

FIRST = STAGES[:3]  # of the time to the first token
LAST = STAGES[3:]
_Key = TypeVar("_Key")


@dataclass(frozen=True, eq=False)
class Row:
    """A bundle on an engine. bench: the benchmark that `timed` is of; score: its run of the page's main suite."""

    member: Member
    runtime: str
    bench: dict[str, Any] | None
    timed: dict[str, Any] | None
    score: dict[str, Any] | None

    @property
    def name(self) -> str:
        return f"{self.member.name} on {self.runtime}"

    @property
    def bytes(self) -> int:
        return self.member.size(self.runtime)

    def seconds(self, stages: Sequence[str]) -> float:
        """Warm medians, added up; 0 where nothing was measured."""
        return float(sum(self.timed["warm"][stage]["median"] for stage in stages)) if self.timed else 0.0

    @property
    def memory(self) -> float:
        """Bytes at peak; 0 where nothing was measured."""
        peak = (self.timed or {}).get("peak_memory")
        return peak if is_number(peak) else 0.0


@dataclass(frozen=True)
class Ratio:
    """How many times as long one takes as another: median over `turns` side by side; p of the sign test."""

    median: float
    turns: int
    p: float

    @property
    def told(self) -> bool:
        return self.p < LEVEL and self.median != 1


@dataclass(frozen=True, eq=False)
class Runs:
    """The evaluations on one suite, the first of which the others are compared with.

    whole, skills: differences by the run's number, and by (number, skill), where both were asked some of the same
    questions; each adjusted for how many there are.
    """

    reports: tuple[dict[str, Any], ...]
    whole: Mapping[int, Difference]
    skills: Mapping[tuple[int, str], Difference]

    def number(self, report: Mapping[str, Any] | None) -> int:
        return next((i for i, each in enumerate(self.reports) if each is report), 0)


@dataclass(frozen=True, eq=False)
class Compared:
    """rows: every bundle on every engine; base: the one that the others are compared with."""

    rows: tuple[Row, ...]
    base: Row
    suite: str | None
    runs: Runs

    def difference(self, row: Row) -> Difference | None:
        """Of scores, where it is known."""
        return self.runs.whole.get(self.runs.number(row.score))

    def skills(self, row: Row) -> dict[str, Difference]:
        """Of scores by skill, those that are no chance."""
        number = self.runs.number(row.score)
        return {skill: d for (i, skill), d in self.runs.skills.items() if i == number and d.told}

    def others(self) -> list[Row]:
        """One row for each other bundle: on the baseline's engine, or else on its own first."""
        found: dict[str, Row] = {}
        for row in self.rows:
            if row.member is not self.base.member and (
                row.member.name not in found or row.runtime == self.base.runtime
            ):
                found[row.member.name] = row
        return list(found.values())

    def ratio(self, row: Row, stages: Sequence[str]) -> Ratio | None:
        """The row's time over the baseline's; None where they were not measured in turns of one benchmark."""
        if row.bench is None or row.bench is not self.base.bench or row is self.base:
            return None
        first, second = (_turns(each.timed, stages) for each in (self.base, row))
        if not first or len(first) != len(second) or min(*first, *second) <= 0:
            return None
        ratios = [b / a for a, b in zip(first, second, strict=True)]
        p = sign_test(sum(r > 1 for r in ratios), sum(r < 1 for r in ratios))
        return Ratio(statistics.median(ratios), len(ratios), p)


def compare(found: Findings) -> Compared:
    timed: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {}
    for report in found.benches:  # the first that has a bundle and engine
        for subject in report["subjects"]:
            member = found.member_of(str(subject["bundle"]))
            if member and not is_evaluator(subject["runtime"], str(subject.get("engine", ""))):
                timed.setdefault((member.name, subject["runtime"]), (report, subject))
    suite = main_suite(found.evals)
    runs = compare_runs(found, suite)
    scored: dict[tuple[str, str], dict[str, Any]] = {}
    for report in runs.reports:
        if member := found.member_of(report["bundle"]):
            scored.setdefault((member.name, report["runtime"]), report)
    rows = []
    for member in found.members:
        known = [runtime for name, runtime in (*timed, *scored) if name == member.name]
        for runtime in dict.fromkeys([*member.runtimes, *known]):
            bench, subject = timed.get((member.name, runtime), (None, None))
            rows.append(Row(member, runtime, bench, subject, scored.get((member.name, runtime))))
    best = found.baseline()
    if not any(row.member is best for row in rows):  # no engine of this machine, and no file
        rows.insert(0, Row(best, "no engine here", None, None, None))
    base = max((row for row in rows if row.member is best), key=lambda row: (bool(row.score), bool(row.timed)))
    return Compared(tuple(rows), base, suite, runs)


def compare_runs(found: Findings, suite: str | None) -> Runs:
    """The runs of one suite, those of the baseline's bundle first."""
    best = found.baseline()
    reports = [report for report in found.evals if report["suite"] == suite]
    reports.sort(key=lambda report: found.member_of(report["bundle"]) is not best)
    whole: dict[int, Difference] = {}
    by_skill: dict[tuple[int, str], Difference] = {}
    for i, report in enumerate(reports[1:], 1):
        if known := paired_difference(scores_of(reports[0]), scores_of(report)):
            whole[i] = known
        for skill in report["skills"]:
            if known := paired_difference(scores_of(reports[0], skill), scores_of(report, skill)):
                by_skill[i, skill] = known
    return Runs(tuple(reports), _adjusted(whole), _adjusted(by_skill))


def main_suite(evals: Sequence[Mapping[str, Any]]) -> str | None:
    """The suite that most runs were scored on, the first of several."""
    counts = Counter(report["suite"] for report in evals)
    return max(counts, key=lambda suite: counts[suite]) if counts else None


def scores_of(report: Mapping[str, Any] | None, skill: str | None = None) -> dict[str, float]:
    """Scores by question; none where the file is of an edgevlm that did not keep them."""
    by_skill: Mapping[str, Mapping[str, float]] = (report or {}).get("scores") or {}
    return {key: score for name, each in by_skill.items() if skill in (None, name) for key, score in each.items()}


def question_sets(reports: Iterable[Mapping[str, Any]]) -> tuple[bool, bool]:
    """Whether all were asked the same questions, and whether all files say which."""
    sets = [frozenset(scores_of(report)) for report in reports]
    return len(set(sets)) < 2, all(sets)


def _adjusted(found: Mapping[_Key, Difference]) -> dict[_Key, Difference]:
    """The differences with their p adjusted for looking at all of them."""
    values = holm([each.p for each in found.values()])
    return {key: replace(each, p=p) for (key, each), p in zip(found.items(), values, strict=True)}


def _turns(subject: Mapping[str, Any] | None, stages: Sequence[str]) -> list[float]:
    """Seconds of each turn, stages added up; none where the file does not have them."""
    if subject is None:
        return []
    columns = [subject["warm"][stage].get("values") for stage in stages]
    if not all(isinstance(c, list) and all(map(is_number, c)) for c in columns) or len({len(c) for c in columns}) != 1:
        return []
    return [sum(turn) for turn in zip(*columns, strict=True)]
