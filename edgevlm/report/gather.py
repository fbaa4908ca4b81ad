"""The data of a report: bundles with their gates, benchmarks, evaluations and answers, and notes on what is missing."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from edgevlm.bench.measure import read_bench, runtime_bytes
from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.errors import EdgeVLMError, install_hint
from edgevlm.io import limits
from edgevlm.io.json import read_json
from edgevlm.io.options import check_types
from edgevlm.report.asking import GalleryEntry, Question, ask_all
from edgevlm.report.measure import is_evaluator, scenes_score, short_bench
from edgevlm.types import Progress

_KINDS = ("fp32", "fp16", "int8", "int4")  # most bits first


@dataclass(frozen=True)
class ReportOptions:
    """Files to read, and what to measure without them. Raises EdgeVLMError for a value out of its range."""

    evals: tuple[Path, ...] = ()
    benches: tuple[Path, ...] = ()
    questions: int = 300  # of Scenes, for a bundle without an evaluation; 0 measures none
    repeat: int = 6  # warm questions of a bundle without a benchmark; 0 measures none
    pictures: tuple[Path, ...] = ()  # for the gallery; empty takes shipped ones
    question: str | None = None
    tiles: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("questions", "repeat"):
            value = getattr(self, name)
            if not 0 <= value <= 100_000:
                raise EdgeVLMError(f"{name} is {value}: give a whole number from 0, which measures nothing.")
        for path in (*self.evals, *self.benches, *self.pictures):
            if not path.is_file():
                raise EdgeVLMError(f"There is no file '{path}': check the path.")
        if self.question is not None and not self.question.strip():
            raise EdgeVLMError("The question is empty: give one, or leave it out.")


@dataclass(frozen=True, eq=False)
class Member:
    """A bundle of the report."""

    name: str  # unique in it
    bundle: Bundle
    runtimes: tuple[str, ...]  # engines of this machine for its targets

    @property
    def kind(self) -> str:
        return str(self.bundle.manifest.recipe.get("quantize"))

    @property
    def gate(self) -> dict[str, Any] | None:
        return self.bundle.manifest.gate

    def layers(self) -> dict[str, float | None]:
        """Divergence from the original by place, as the gate recorded it; empty where it did not."""
        layers = (self.gate or {}).get("layers")
        found = layers.get("quantization") if isinstance(layers, dict) else None
        return {k: v for k, v in found.items() if v is None or is_number(v)} if isinstance(found, dict) else {}

    def size(self, runtime: str) -> int:
        return runtime_bytes(self.bundle, runtime)["runtime"]


@dataclass(frozen=True)
class Findings:
    members: tuple[Member, ...]
    benches: tuple[dict[str, Any], ...]
    evals: tuple[dict[str, Any], ...]
    gallery: tuple[GalleryEntry, ...]
    notes: tuple[str, ...] = field(default=())  # what is missing, and why

    @cached_property
    def engines(self) -> frozenset[str]:
        """Every engine that anything on the page is of."""
        files = [*self.evals, *(subject for report in self.benches for subject in report["subjects"])]
        return frozenset([r for m in self.members for r in m.runtimes] + [entry["runtime"] for entry in files])

    def member_of(self, place: str) -> Member | None:
        """The bundle that a JSON file names by its path, or by its folder's name."""
        folder = Path(place)
        for member in self.members:
            if os.path.abspath(member.bundle.folder) == os.path.abspath(folder):
                return member
        return next((m for m in self.members if m.bundle.folder.absolute().name == folder.name), None)

    def baseline(self) -> Member:
        """The bundle with most bits, which losses are counted from; the first of several."""
        known = {kind: place for place, kind in enumerate(_KINDS)}
        return min(self.members, key=lambda m: known.get(m.kind, len(_KINDS)))


def gather(folders: Sequence[Path], options: ReportOptions, progress: Progress | None = None) -> Findings:
    """Open the bundles, read the files, and measure what they do not contain. Raises EdgeVLMError before any work."""
    notes: list[str] = []
    members = _members(folders, notes)
    evals = [read_eval(_load(path), str(path)) for path in options.evals]
    benches = [read_bench(_load(path), str(path)) for path in options.benches]
    found = Findings(members, tuple(benches), tuple(evals), ())

    def report_progress(done: int) -> None:
        if progress:
            progress("report", done, 2 * len(members) + 1)

    timed = {found.member_of(str(subject["bundle"])) for report in benches for subject in report["subjects"]}
    scored = {found.member_of(str(report["bundle"])) for report in evals}
    best = found.baseline()
    untimed = sorted((m for m in members if m not in timed), key=lambda member: member is not best)
    engines = [(m.bundle, runtime) for m in untimed for runtime in m.runtimes if not is_evaluator(runtime)]
    report_progress(0)
    if options.repeat and engines:  # in turns of one benchmark, in which times can be compared
        benches.append(short_bench(engines, options.repeat, options.tiles, options.threads, progress))
    for i, member in enumerate(members):
        report_progress(len(members) + i)
        if member not in scored and options.questions and member.runtimes:
            engine = member.runtimes[0]
            evals.append(scenes_score(member.bundle, engine, options.questions, options.tiles, options.threads))
    report_progress(2 * len(members))
    entries = ask_all(
        [(member.name, member.bundle, runtime) for member in members for runtime in member.runtimes],
        [Question(path, options.question) for path in options.pictures] or None,
        question=options.question,
        baseline=best.name,
        tiles=options.tiles,
        threads=options.threads,
        notes=notes,
    )
    report_progress(2 * len(members) + 1)
    return Findings(members, tuple(benches), tuple(evals), tuple(entries), tuple(notes))


def read_eval(data: Any, where: str) -> dict[str, Any]:
    """An evaluation read back from JSON; EdgeVLMError where it is none."""
    fields = {"bundle": str, "suite": str, "runtime": str, "skills": dict}
    good = isinstance(data, dict) and all(isinstance(data.get(name), kind) for name, kind in fields.items())
    if good:
        skills = [
            skill.get(name) if isinstance(skill, dict) else None
            for skill in data["skills"].values()
            for name in ("score", "low", "high")
        ]
        ends = [data[name] for name in ("low", "high") if name in data]
        good = all(map(_is_score, [data.get("score"), *skills, *ends])) and _good_scores(data.get("scores", {}))
    if not good:
        raise EdgeVLMError(f"'{where}' is not an evaluation: make one with `edgevlm eval BUNDLE --json FILE`.")
    result: dict[str, Any] = data
    return result


def _good_scores(scores: Any) -> bool:
    """{skill: {question: score}}, each 0 to 1."""
    return isinstance(scores, dict) and all(
        isinstance(each, dict) and all(map(_is_score, each.values())) for each in scores.values()
    )


def _is_score(value: object) -> bool:
    return is_number(value) and -1e-9 <= value <= 1 + 1e-9


def is_number(value: object) -> TypeGuard[float]:
    """A finite number, which JSON need not hold where one is expected."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _load(path: Path) -> Any:
    return read_json(path, "check the path", largest=limits.RESULT_FILE, halves=True)


def _members(folders: Sequence[Path], notes: list[str]) -> tuple[Member, ...]:
    from edgevlm.runtimes import DEFAULTS
    from edgevlm.verify.runtime import is_large
    from edgevlm.verify.targets import JUDGES

    members: list[Member] = []
    for folder in folders:
        bundle = open_bundle(folder)
        base = name = folder.absolute().name
        number = 2
        while any(name == member.name for member in members):
            name, number = f"{base} ({number})", number + 1
        runtimes = []
        for target in bundle.manifest.targets:
            engine = DEFAULTS[target]
            module, extra = JUDGES[target].module, JUDGES[target].extra
            if module is not None and importlib.util.find_spec(module) is None:
                notes.append(
                    f"{name}: {engine} was left out, because {module} is not installed: {install_hint(extra)}."
                )
            elif is_evaluator(engine) and is_large(bundle.manifest.spec.vision):
                notes.append(f"{name}: {engine} was left out, because the evaluator is too slow for this model.")
            else:
                runtimes.append(engine)
        members.append(Member(name, bundle, tuple(runtimes)))
    return tuple(members)
