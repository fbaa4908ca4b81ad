"""Benchmarks of bundles on this machine: times of four stages, warm and cold, memory and bytes; paired comparisons.

Every bundle and engine has processes of its own, so that its peak memory is its own. *Cold* is the first question of a
fresh process (the files may still be in the system's cache), *warm* every later one. With several, runs take turns,
forwards and backwards, and each is compared with its neighbour in time: a machine that slows down slows both.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgevlm.bench.device_card import device_card
from edgevlm.bench.worker import STAGES, Worker
from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.io.options import check_types
from edgevlm.types import Progress

FORMAT, VERSION = "edgevlm-bench", 1
RATIOS = ("encode", "prefill", "decode")
_FIGURES = ("median", "min", "max")
PICTURE = Path(__file__).parent.parent / "assets" / "pictures" / "coffee.jpg"
QUESTION = "Describe the picture in three sentences."


@dataclass(frozen=True)
class Subject:
    """What is measured: a bundle on an engine; None is the bundle's own choice."""

    bundle: Path
    runtime: str | None = None


@dataclass(frozen=True)
class BenchOptions:
    """How to measure. Raises EdgeVLMError for a value out of its range."""

    repeat: int = 6  # warm questions of each subject; with fewer, chance may put one first in every turn
    cold: int = 3  # fresh processes of each subject
    tokens: int = 32  # of the answer, stop tokens or not, so that decode is measured over the same number
    tiles: int | None = None  # most tiles of the picture; None is the model's own rule
    threads: int | None = None  # None leaves the number to the engine
    device: str = "cpu"
    picture: Path = field(default=PICTURE)
    question: str = QUESTION

    def __post_init__(self) -> None:
        check_types(self)
        for name, least in (("repeat", 1), ("cold", 1), ("tokens", 2), ("tiles", 1)):
            value = getattr(self, name)
            if value is not None and not least <= value <= 10_000:
                raise EdgeVLMError(f"{name} is {value}: give a whole number from {least} to 10000.")
        if not self.picture.is_file():
            raise EdgeVLMError(f"There is no picture '{self.picture}': check the path.")


def bench(subjects: Sequence[Subject], options: BenchOptions, progress: Progress | None = None) -> dict[str, Any]:
    """Measure every subject; the report as JSON values, docs/benchmark.md has its fields.

    The first subject is compared with each of the others. Raises EdgeVLMError.
    """
    bundles = [open_bundle(subject.bundle) for subject in subjects]
    card = device_card()  # before the work, which would be seen in its load
    done, total = 0, len(subjects) * (options.cold + options.repeat)
    cold: list[list[dict[str, Any]]] = [[] for _ in subjects]
    warm: list[list[dict[str, Any]]] = [[] for _ in subjects]
    workers: dict[int, Worker] = {}

    def step() -> None:
        nonlocal done
        done += 1
        if progress:
            progress("measure", done, total)

    try:
        for turn in range(options.cold):
            for i in _order(len(subjects), turn):
                if i in workers:
                    workers.pop(i).close()
                workers[i] = Worker(_task(subjects[i], options))
                cold[i].append({**workers[i].loaded, **workers[i].ask()})
                step()
        for turn in range(options.repeat):
            for i in _order(len(subjects), turn):
                warm[i].append(workers[i].ask())
                step()
    finally:
        for worker in workers.values():
            worker.close()
    found = [_subject(*each) for each in zip(subjects, bundles, cold, warm, strict=True)]
    for entry, name in zip(found, _names(found), strict=True):
        entry["name"] = name
    report: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "device": card,
        "settings": {
            **{name: getattr(options, name) for name in ("repeat", "cold", "tokens", "tiles", "threads", "device")},
            "picture": options.picture.name,
            "question": options.question,
        },
        "subjects": found,
    }
    if len(found) > 1:
        report["vs"] = [
            {"name": entry["name"], **paired_ratios(warm[0], runs)}
            for entry, runs in zip(found[1:], warm[1:], strict=True)
        ]
        report["ratios"] = report["vs"][0]["ratios"]
    return report


def paired_ratios(first: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many times as long the other took, run by run: the median of each stage, and the least and greatest.

    first and other: one {stage: seconds} per turn. Above 1 the first is faster; None where a stage took no time.
    """
    ratios: dict[str, float | None] = {}
    spread: dict[str, list[float] | None] = {}
    for stage in RATIOS:
        pairs = [b[stage] / a[stage] for a, b in zip(first, other, strict=True) if a[stage] > 0 and b[stage] > 0]
        ratios[stage] = statistics.median(pairs) if pairs else None
        spread[stage] = [min(pairs), max(pairs)] if pairs else None
    return {"ratios": ratios, "spread": spread, "pairs": len(first)}


def statistic(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and greatest, and the values themselves."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": list(values)}


def read_bench(data: Any, where: str) -> dict[str, Any]:
    """A report read back from JSON; EdgeVLMError where it is none."""
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("subjects"), list):
        raise EdgeVLMError(f"'{where}' is not a benchmark: make one with `edgevlm bench BUNDLE --json FILE`.")
    if data.get("version") != VERSION:
        raise EdgeVLMError(
            f"'{where}' has version {data.get('version')!r}, and this edgevlm reads {VERSION}: measure again."
        )
    for subject in data["subjects"]:
        try:
            figures = [subject[kind][stage][name] for kind in ("cold", "warm") for stage in STAGES for name in _FIGURES]
            good = all(isinstance(subject[name], str) for name in ("name", "bundle", "runtime"))
            good = good and all(isinstance(value, int | float) and 0 <= value < math.inf for value in figures)
        except (KeyError, TypeError):
            good = False
        if not good or not all(isinstance(data.get(name), dict) for name in ("device", "settings")):
            raise EdgeVLMError(f"'{where}' lacks figures of a benchmark: measure again.")
    return data


def runtime_bytes(bundle: Bundle, runtime: str) -> dict[str, int]:
    """Bytes of the whole bundle, and of what this engine may read: all but the folders of other targets."""
    from edgevlm.runtimes import DEFAULTS

    engines = {**DEFAULTS, "onnx": "onnxruntime+eager"}
    others = [f"{t}/" for t, engine in engines.items() if not set(engine.split("+")) & set(runtime.split("+"))]
    files = bundle.manifest.files.items()
    mine = sum(info.size for name, info in files if not name.startswith(tuple(others)))
    return {"bundle": sum(info.size for _, info in files), "runtime": mine}


def _order(count: int, turn: int) -> list[int]:
    """Forwards, then backwards, so that no subject always runs right after the same other one."""
    return list(range(count)) if turn % 2 == 0 else list(reversed(range(count)))


def _task(subject: Subject, options: BenchOptions) -> dict[str, Any]:
    return {
        "bundle": str(subject.bundle),
        "runtime": subject.runtime,
        "picture": str(options.picture),
        **{name: getattr(options, name) for name in ("device", "threads", "tiles", "tokens", "question")},
    }


def _subject(
    subject: Subject, bundle: Bundle, cold: list[dict[str, Any]], warm: list[dict[str, Any]]
) -> dict[str, Any]:
    last, manifest, runtime = warm[-1], bundle.manifest, str(cold[-1]["runtime"])
    return {
        "name": "",
        "bundle": str(subject.bundle),
        "model": manifest.model.name,
        "weights_sha256": manifest.model.weights_sha256,
        "quantize": manifest.recipe.get("quantize"),
        "preset": manifest.recipe.get("preset"),
        "runtime": runtime,
        "engine": cold[-1]["device"],
        "bytes": runtime_bytes(bundle, runtime),
        **{name: last[name] for name in ("image_tokens", "prompt_tokens", "answer_tokens", "peak_memory")},
        "start": statistic([run["start"] for run in cold]),
        "load": statistic([run["load"] for run in cold]),
        "cold": {stage: statistic([run[stage] for run in cold]) for stage in STAGES},
        "warm": {stage: statistic([run[stage] for run in warm]) for stage in STAGES},
        "ids": last["ids"],
    }


def _names(found: list[dict[str, Any]]) -> list[str]:
    """ "BUNDLE on ENGINE", numbered where that is not unique."""
    names: list[str] = []
    for entry in found:
        name = base = f"{Path(entry['bundle']).absolute().name} on {entry['runtime']}"
        number = 2
        while name in names:
            name, number = f"{base} ({number})", number + 1
        names.append(name)
    return names
