"""Pictures with the answers of each bundle on each engine; words that differ are marked."""

from __future__ import annotations

import base64
import difflib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from edgevlm.errors import EdgeVLMError
from edgevlm.generate.loop import GenerateOptions, Pipeline
from edgevlm.inputs.decode import open_image
from edgevlm.report.markup import Html, h, join
from edgevlm.runtimes import open_runtime

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

TOKENS = 48
SIDE = 320  # pixels of the longest side as shown
_DEFAULT = "What is in the picture?"
_PHOTOS = ("coffee.jpg", "chelsea.jpg")
_SKILLS = ("colour", "count", "naming", "existence")  # one scene of the test split each


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


def gallery(entries: Sequence[GalleryEntry]) -> Html:
    """One block per question: the picture, and an answer per bundle and engine."""
    return join(*map(_block, entries))


def _block(entry: GalleryEntry) -> Html:
    """One card per distinct answer; the others are compared with the first."""
    groups: dict[str | None, list[str]] = {}
    for answer in entry.answers:
        groups.setdefault(answer.text, []).append(answer.who)
    first = entry.answers[0].text if entry.answers else None
    cards = [_card(words, who, first, entry.truth) for words, who in groups.items()]
    truth = h("p", "Right answer: ", h("strong", entry.truth), class_="caption") if entry.truth else None
    left = h("div", h("img", src=entry.picture, alt=entry.name), h("p", h("bdi", entry.name), class_="caption"))
    right = h("div", h("h3", h("bdi", entry.words)), truth, h("div", *cards, class_="answers"))
    return h("article", left, right, class_="asked")


def _card(words: str | None, who: Sequence[str], first: str | None, truth: str | None) -> Html:
    names = h("ul", *(h("li", h("bdi", name)) for name in who), class_="who")
    if words is None:
        return h("div", h("em", "no answer"), names, class_="answer differs")
    right = None
    if truth is not None:
        right = h("div", "right" if plain(words) == plain(truth) else "not the right answer", class_="who")
    if first is None or words == first:
        return h("div", h("div", words, dir="auto"), right, names, class_="answer")
    flag = h("div", "differs: added words are marked, missing ones struck out", class_="flag")
    return h("div", h("div", marked(first, words), dir="auto"), flag, right, names, class_="answer differs")


def marked(first: str, second: str) -> Html:
    """`second`, with words that `first` lacks marked, and words that only `first` has struck out."""
    ours, theirs = re.findall(r"\s+|\S+", second), re.findall(r"\s+|\S+", first)
    parts: list[object] = []
    matcher = difflib.SequenceMatcher(None, theirs, ours, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        gone, new = "".join(theirs[a:b]), "".join(ours[c:d])
        if kind == "equal":
            parts.append(new)
            continue
        if gone.strip():
            parts.append(h("del", gone))
        if gone.strip() and new.strip():
            parts.append(" ")
        parts.append(h("mark", new) if new.strip() else new)
    return join(*parts)


def plain(answer: str) -> str:
    """Lower case without final stop, to mark answers right or wrong; scores come from `edgevlm eval`."""
    return answer.strip().rstrip(".").casefold()


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
    for number, skill in enumerate(_SKILLS):
        scene = make_scene("test", 0, number)
        questions = ask(scene)
        chosen = next((q for q in questions if q.skill == skill), questions[0])
        found.append(Question(scene.picture, chosen.question, chosen.answer))
    return found
