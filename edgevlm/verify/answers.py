"""The gate's third level: each target's score on a set of questions, against the model before quantization."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgevlm.bundle.manifest import Bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.evaluation.item import Item, Suite
from edgevlm.evaluation.runner import Report, evaluate
from edgevlm.evaluation.suites import SUITES, read_items
from edgevlm.runtimes.base import Runtime
from edgevlm.types import Progress
from edgevlm.verify.report import Row

QUESTIONS = 100  # the default number
_DRAWN = 25  # pictures of Scenes that these come from


@dataclass(frozen=True)
class Questions:
    """The questions that the gate asks."""

    suite: Suite
    items: tuple[Item, ...]

    def ask(self, bundle: Bundle, runtime: Runtime, progress: Progress | None = None) -> Report:
        return evaluate(bundle, runtime, self.suite, list(self.items), progress=progress)


@contextmanager
def open_questions(place: str, limit: int = QUESTIONS) -> Iterator[Questions]:
    """The questions at `place`: "scenes" draws them, a folder holds Scenes or questions of one's own (suite jsonl).

    limit: how many, spread evenly.
    """
    if limit < 1:
        raise EdgeVLMError(f"The gate is to ask {limit} questions: give 1 or more.")
    with tempfile.TemporaryDirectory(prefix="edgevlm-gate-") as drawn:
        folder = Path(place)
        if place == "scenes":
            from edgevlm.scenes.folder import write_scenes

            folder = Path(drawn) / "scenes"
            write_scenes(folder, "test", 0, max(1, _DRAWN * limit // QUESTIONS))
        elif not folder.exists():
            raise EdgeVLMError(
                f"There are no questions at '{place}': give 'scenes', a Scenes folder, or one with a questions.jsonl."
            )
        suite = SUITES["scenes" if (folder / "dataset.json").is_file() else "jsonl"]
        items = read_items(suite, folder)
        count = min(limit, len(items))
        yield Questions(suite, tuple(items[i * len(items) // count] for i in range(count)))


@contextmanager
def maybe_questions(place: str | None, limit: int = QUESTIONS) -> Iterator[Questions | None]:
    """`open_questions` where a place is given; None elsewhere."""
    if place is None:
        yield None
        return
    with open_questions(place, limit) as questions:
        yield questions


def check_answers(target: str, baseline: Report, found: Report, bound: float | None) -> Row:
    """The share of the score that `found` has lost against `baseline`, and the skill that lost most."""
    lost = baseline.score - found.score
    before, after = baseline.skills(), found.skills()
    count = len(found.results)
    skill = max(after, key=lambda name: (before[name]["score"] - after[name]["score"]) * after[name]["n"])
    note = f"{found.score:.3f} against {baseline.score:.3f} on {count} questions"
    where = skill if before[skill]["score"] > after[skill]["score"] else ""
    if where:
        note += f", most in {skill} ({after[skill]['score']:.2f} against {before[skill]['score']:.2f})"
    check = f"score lost on {found.suite}"
    return Row(target, check, lost, bound, bound is None or lost <= bound, note, "answers", where)
