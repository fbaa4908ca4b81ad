"""The Scenes folder: dataset.json, images/000000.png and questions.jsonl. Both written and read here."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits
from edgevlm.io.folders import Kind, replacing
from edgevlm.io.json import parse_json, read_json
from edgevlm.io.names import is_below
from edgevlm.io.regular import read_lines
from edgevlm.scenes.catalogue import SPLITS, Split
from edgevlm.scenes.question import LOC_BINS, Question, parse_question
from edgevlm.types import Progress

FORMAT, VERSION = "edgevlm-scenes", 1
DATASET, QUESTIONS = "dataset.json", "questions.jsonl"
MOST_SCENES = 1_000_000
_LONGEST_LINE = 1 << 20  # characters; a line of Scenes has a few hundred


@dataclass(frozen=True)
class QuestionSet:
    """A Scenes folder, read."""

    folder: Path
    split: Split
    seed: int
    count: int  # pictures
    loc_bins: int
    questions: tuple[Question, ...]
    problems: tuple[str, ...] = ()  # 'questions.jsonl, line 7: ...' of each line that was skipped

    def picture(self, question: Question) -> Path:
        return self.folder / question.image


def write_scenes(
    out: Path,
    split: Split,
    seed: int,
    count: int,
    *,
    force: bool = False,
    size: tuple[int, int] | None = None,
    rounds: int = 1,
    progress: Progress | None = None,
) -> int:
    """Write the first `count` scenes of (split, seed) and their questions to `out`; returns the number of questions.

    More `rounds` ask more of each picture (training wants that). The folder appears under its name when it is whole.
    `force` replaces an earlier Scenes folder.
    """
    from edgevlm.scenes.ask import ask
    from edgevlm.scenes.generator import scenes

    total = 0
    with replacing(out, SCENES, force) as output:
        (output.new / "images").mkdir()
        with (output.new / QUESTIONS).open("w", encoding="utf-8", newline="\n") as lines:
            for number, scene in enumerate(scenes(split, seed, count, size), 1):
                questions = ask(scene, rounds)
                scene.picture.save(output.new / questions[0].image, compress_level=4)
                for question in questions:
                    lines.write(json.dumps(question.to_dict(), ensure_ascii=False) + "\n")
                total += len(questions)
                if progress:
                    progress("Drawing scenes", number, count)
        head = {"format": FORMAT, "version": VERSION, "split": split, "seed": seed, "count": count}
        text = json.dumps(head | {"loc_bins": LOC_BINS}, indent=1) + "\n"
        (output.new / DATASET).write_text(text, encoding="utf-8", newline="\n")
        output.publish()
    return total


def _own(head: Any) -> Collection[str] | None:
    """The files of a Scenes folder. Data sets of other kinds have dataset.json files, too."""
    if not isinstance(head, dict) or (head.get("format"), head.get("version")) != (FORMAT, VERSION):
        return None
    count = head.get("count")
    if type(count) is not int or not 0 <= count <= MOST_SCENES:
        return None
    return {DATASET, QUESTIONS, *(f"images/{number:06d}.png" for number in range(count))}


SCENES = Kind("Scenes folder", DATASET, _own)


def read_questions(folder: Path, *, skip_bad: bool = False) -> QuestionSet:
    """Read and check a Scenes folder. A bad line is an error that names file and line, unless `skip_bad`."""
    head = _read_head(folder)
    path = folder / QUESTIONS
    try:
        lines = list(read_lines(path, _LONGEST_LINE))
    except OSError as error:
        raise EdgeVLMError(
            f"'{path}' cannot be read ({error.strerror}): a Scenes folder has {DATASET}, images and {QUESTIONS}."
        ) from None
    questions: list[Question] = []
    problems: list[str] = []
    first_line: dict[str, int] = {}
    images: dict[str, str | None] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            question = parse_question(_json(line, last=not line.endswith(b"\n")))
            if question.image not in images:
                images[question.image] = _image_problem(folder, question.image)
            if problem := images[question.image]:
                raise ValueError(problem)
            if first_line.setdefault(question.id, number) != number:
                raise ValueError(f"the id '{question.id}' is line {first_line[question.id]}'s already")
        except ValueError as error:
            if not skip_bad:
                raise EdgeVLMError(
                    f"'{path}', line {number}: {error}. Fix the line, or leave bad lines out with --skip-bad."
                ) from None
            problems.append(f"{QUESTIONS}, line {number}: {error}")
        else:
            questions.append(question)
    if not questions:
        raise EdgeVLMError(f"'{path}' holds no question that can be used: write the folder again.")
    return QuestionSet(folder, questions=tuple(questions), problems=tuple(problems), **head)


def _read_head(folder: Path) -> dict[str, Any]:
    path = folder / DATASET
    missing = f"'{folder}' is not a Scenes folder (no {DATASET}): write one with edgevlm scenes {folder}."
    head = read_json(path, "write the folder again", missing=missing, largest=limits.SPEC_FILE)
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise EdgeVLMError(f'\'{path}\' does not say "format": "{FORMAT}": it is not a Scenes folder\'s.')
    if head.get("version") != VERSION:
        raise EdgeVLMError(
            f"'{path}' has version {head.get('version')!r:.60}, and this edgevlm reads {VERSION}: update edgevlm."
        )
    numbers = {key: head.get(key) for key in ("seed", "count", "loc_bins")}
    if head.get("split") not in SPLITS or any(type(v) is not int or v < 0 for v in numbers.values()):
        raise EdgeVLMError(
            f"'{path}' must name a split ({', '.join(SPLITS)}), a seed, a count and loc_bins: write the folder again."
        )
    return {"split": head["split"], **numbers}


def _json(line: bytes, last: bool) -> Any:
    try:
        return parse_json(line, _LONGEST_LINE)
    except json.JSONDecodeError as error:
        what = "the line is cut off (the file ends in it)" if last else "the line is not JSON"
        raise ValueError(f"{what}: {error.msg} at column {error.colno}") from None


def _image_problem(folder: Path, image: str) -> str | None:
    """Why an image cannot be used; only paths below the folder are followed."""
    if not is_below(image):
        return f"the image '{image}' is not a path below the folder"
    path = folder / image
    if not path.is_file():
        return f"the image '{image}' is missing"
    if path.stat().st_size == 0:
        return f"the image '{image}' is empty"
    return None
