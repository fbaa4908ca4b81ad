"""Calibration data: pictures with questions and answers, from a folder, a JSONL file or the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from edgevlm.errors import EdgeVLMError
from edgevlm.io.json import parse_json
from edgevlm.io.regular import read_lines
from edgevlm.io.text import check_place
from edgevlm.verify.gate import PICTURES, picture_folder

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
MAX_PICTURES = 48  # more cost time and change the statistics of a small model very little
QUESTIONS_EACH = 8  # per picture: the picture's own tokens are computed once for all of them
DEFAULT_SCENES = 40
SEED = 606  # of those scenes: the split is that of training, so nothing that is scored is calibrated on
QUESTIONS = ("What is in the picture?", "Describe the picture.")  # asked where a source has pictures only
_MAX_LINE = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """One question about one picture; without an answer, the model's own is taken."""

    image: Path | Image.Image
    question: str
    answer: str | None = None


@dataclass(frozen=True)
class Source:
    """Examples by picture, and a phrase for the manifest that says where they are from."""

    name: str
    pictures: tuple[tuple[Example, ...], ...]


def read_source(where: str) -> Source:
    """`where`: "default", a folder of pictures (or one that `edgevlm scenes` wrote), or a JSONL file.

    JSONL: one object per line with "image" (a path relative to the file), "question", and "answer" where there is one.
    Raises EdgeVLMError for what is not that, naming the line.
    """
    if where == "default":
        return default_source()
    path = Path(where)
    check_place(path)  # the manifest says what was calibrated on
    if path.is_dir():
        questions = path / "questions.jsonl"
        return _from_jsonl(questions, where) if questions.is_file() else _from_folder(path)
    if path.is_file():
        return _from_jsonl(path, where)
    raise EdgeVLMError(
        f"There is nothing to calibrate on at '{where}': give a folder of pictures, a JSONL file, or 'default'."
    )


def default_source() -> Source:
    """The shipped pictures, but for those that the gate measures the loss on, and generated scenes."""
    shipped = sorted(p for p in picture_folder().iterdir() if p.suffix in SUFFIXES and p.name not in PICTURES)
    scenes = generated_scenes(DEFAULT_SCENES)
    pictures = [tuple(Example(path, question) for question in QUESTIONS) for path in shipped]
    # The pictures that ship are spread among the scenes, so that a short budget still meets both kinds.
    step = max(1, len(scenes) // max(1, len(pictures)))
    for number, examples in enumerate(pictures):
        scenes.insert(number * (step + 1), examples)
    return Source(f"default ({len(pictures)} pictures and {DEFAULT_SCENES} generated scenes)", tuple(scenes))


def generated_scenes(count: int) -> list[tuple[Example, ...]]:
    """Pictures with exact answers, the same on every machine."""
    from edgevlm.scenes import ask, scenes

    return [
        tuple(Example(scene.picture, q.question, q.answer) for q in _spread(ask(scene), QUESTIONS_EACH))
        for scene in scenes("train", SEED, count)
    ]


def _from_folder(folder: Path) -> Source:
    try:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError as error:
        raise EdgeVLMError(f"The folder '{folder}' cannot be read ({error.strerror}): check its permissions.") from None
    if not paths:
        raise EdgeVLMError(
            f"The folder '{folder}' holds no pictures to calibrate on: put some there (JPEG, PNG, WebP ...), or use "
            "--calibrate default."
        )
    pictures = tuple(tuple(Example(path, question) for question in QUESTIONS) for path in _spread(paths, MAX_PICTURES))
    return Source(f"{len(pictures)} of {len(paths)} pictures of the folder '{folder.name}'", pictures)


def _from_jsonl(path: Path, where: str) -> Source:
    by_picture: dict[Path, list[Example]] = {}
    try:
        for number, line in enumerate(read_lines(path, _MAX_LINE), 1):
            if line.strip():
                example = _example(line, path, number)
                assert isinstance(example.image, Path)
                by_picture.setdefault(example.image, []).append(example)
    except OSError as error:
        raise EdgeVLMError(f"'{path}' cannot be read ({error.strerror}): check the file.") from None
    if not by_picture:
        raise EdgeVLMError(
            f"'{path}' is empty: calibration needs lines such as "
            '{"image": "cat.jpg", "question": "What is it?", "answer": "a cat"}.'
        )
    pictures = tuple(
        tuple(_spread(by_picture[image], QUESTIONS_EACH)) for image in _spread(list(by_picture), MAX_PICTURES)
    )
    return Source(f"{len(pictures)} of {len(by_picture)} pictures named by '{Path(where).name}'", pictures)


def _example(line: bytes, path: Path, number: int) -> Example:
    try:
        values = parse_json(line, _MAX_LINE)
        image, question, answer = values["image"], values["question"], values.get("answer")
        if not (isinstance(image, str) and isinstance(question, str) and isinstance(answer, str | None)):
            raise TypeError("image, question and answer should be texts")
        if not image or "\0" in image or not question.strip():
            raise ValueError("image or question is empty")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise EdgeVLMError(
            f"Line {number} of '{path}' is not an example ({str(error)[:80]}): expected "
            '{"image": path, "question": text, "answer": text}, the answer being optional.'
        ) from None
    return Example(path.parent / image, question, answer or None)


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spaced."""
    if len(items) <= count:
        return list(items)
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, count).round()]
