"""Measurements for bundles without a file: a short benchmark, a score on generated scenes."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgevlm.bench.measure import BenchOptions, Subject, bench
from edgevlm.bundle.manifest import Bundle
from edgevlm.runtimes import open_runtime
from edgevlm.types import Progress

_PER_SCENE = 8  # questions, at least


def is_evaluator(runtime: str, engine: str = "") -> bool:
    """Whether this engine is an evaluator that checks answers, whose times say nothing about a device."""
    return "evaluator" in engine or (runtime == "coreml" and not engine and platform.system() != "Darwin")


def short_bench(
    engines: Sequence[tuple[Bundle, str]],
    repeat: int,
    tiles: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Every bundle on every engine in turns, one cold process each."""
    how = BenchOptions(repeat=repeat, cold=1, tiles=tiles, threads=threads)
    return bench([Subject(bundle.folder, engine) for bundle, engine in engines], how, progress)


def scenes_score(
    bundle: Bundle, runtime: str, questions: int, tiles: int | None = None, threads: int | None = None
) -> dict[str, Any]:
    """The JSON of `edgevlm eval` on that many questions of the test split; the same ones every time."""
    from edgevlm.evaluation.runner import EvalOptions, evaluate
    from edgevlm.evaluation.suites import SUITES, read_items
    from edgevlm.scenes import write_scenes

    suite = SUITES["scenes"]
    with tempfile.TemporaryDirectory(prefix="edgevlm-") as folder:
        place = Path(folder) / "scenes"
        write_scenes(place, "test", 0, -(-questions // _PER_SCENE))
        engine = open_runtime(bundle, runtime, threads=threads)
        try:
            options = EvalOptions(max_tiles=tiles, limit=questions)
            report = evaluate(bundle, engine, suite, read_items(suite, place), options)
        finally:
            engine.close()
    return report.to_dict(str(bundle.folder))
