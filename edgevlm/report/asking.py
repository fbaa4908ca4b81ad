"""The gallery's questions, put to each bundle on each engine: photographs, scenes with known answers, a user's own."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from edgevlm.errors import EdgeVLMError
from edgevlm.generate.loop import GenerateOptions, Pipeline
from edgevlm.inputs.decode import open_image
from edgevlm.runtimes import open_runtime

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

TOKENS = 48
SIDE = 320  # pixels of the longest side as shown
_DEFAULT = "What is in the picture?"
_PHOTOS = ("coffee.jpg", "chelsea.jpg")
_SKILLS = (
    "colour",
    "count",
    "naming",
    "existence",
    "spatial",
    "text",
    "size",
    "count",
)  # a scene of the test split each


@dataclass(frozen=True)
class Question:
    """truth: the right answer, where it is known."""

    picture: Path | Image.Image
    words: str | None = None
    truth: str | None = None

    @property
    def name(self) -> str:
        return self.picture.name if isinstance(self.picture, Path) else "a generated scene"


@dataclass(frozen=True)
class GalleryAnswer:
    """One answer. text is None where the engine failed."""

    who: str
    text: str | None


@dataclass(frozen=True)
class GalleryEntry:
    """A question with all answers; the others are compared with the first."""

    picture: str  # a data: address
    name: str
    words: str
    truth: str | None
    answers: tuple[GalleryAnswer, ...]


def ask_all(
    engines: Sequence[tuple[str, Bundle, str]],
    questions: Sequence[Question] | None,
    *,
    question: str | None,
    baseline: str,
    tiles: int | None,
    threads: int | None,
    notes: list[str],
) -> list[GalleryEntry]:
    """Ask every (name, bundle, runtime) every question; greedy decoding of up to `TOKENS` tokens.

    questions: None takes two shipped photographs and four scenes with known answers. An engine that fails is noted.
    """
    todo = list(_shipped(question) if questions is None else questions)
    answers: list[list[GalleryAnswer]] = [[] for _ in todo]
    for name, bundle, runtime in sorted(engines, key=lambda engine: engine[0] != baseline):
        who = f"{name} on {runtime}"
        try:
            engine = open_runtime(bundle, runtime, threads=threads)
        except EdgeVLMError as error:
            notes.append(f"{who}: no answers. {error}")
            continue
        try:
            pipeline = Pipeline(bundle, engine, reuse=False)
            for each, given in zip(todo, answers, strict=True):
                given.append(GalleryAnswer(who, _answer(pipeline, each, tiles, notes, who)))
        finally:
            engine.close()
    return [
        GalleryEntry(thumbnail(each.picture), each.name, each.words or _DEFAULT, each.truth, tuple(given))
        for each, given in zip(todo, answers, strict=True)
    ]


def thumbnail(picture: Path | Image.Image) -> str:
    """The picture as a small JPEG in a data: address, as the model sees it (turned upright, over its background)."""
    image = Image.fromarray(open_image(picture)) if isinstance(picture, Path) else picture.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _answer(pipeline: Pipeline, each: Question, tiles: int | None, notes: list[str], who: str) -> str | None:
    try:
        options = GenerateOptions(max_tokens=TOKENS)
        return pipeline.answer([each.picture], each.words or _DEFAULT, options, max_tiles=tiles).text.strip()
    except EdgeVLMError as error:
        notes.append(f"{who}, {each.name}: no answer. {error}")
        return None


def _shipped(question: str | None) -> list[Question]:
    from edgevlm.scenes import ask, make_scene

    photos = Path(__file__).parent.parent / "assets" / "pictures"
    found = [Question(photos / name, question) for name in _PHOTOS]
    number = 0
    for skill in _SKILLS:
        chosen = None
        while chosen is None:  # most scenes have a question of each skill
            scene = make_scene("test", 0, number)
            chosen = next((q for q in ask(scene) if q.skill == skill), None)
            number += 1
        found.append(Question(scene.picture, chosen.question, chosen.answer))
    return found
