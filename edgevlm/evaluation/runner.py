"""Ask a bundle a suite's questions: each picture is encoded once, each answer is on disk before the next."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from tokenizers import Tokenizer

from edgevlm.bundle.manifest import MANIFEST, Bundle, sha256
from edgevlm.errors import EdgeVLMError
from edgevlm.evaluation.answer_file import answer_file
from edgevlm.evaluation.item import Item, Picture, Result, Suite
from edgevlm.evaluation.statistics import summary
from edgevlm.evaluation.suites import fingerprint
from edgevlm.generate.loop import GenerateOptions, Pipeline
from edgevlm.inputs.decode import decode_image
from edgevlm.inputs.prompt import Prompter
from edgevlm.inputs.tokenizer import load_tokenizer
from edgevlm.io.options import check_types
from edgevlm.runtimes.base import Runtime
from edgevlm.types import Progress

_LOC = re.compile(r"<loc_\d+>")


@dataclass(frozen=True)
class EvalOptions:
    prompt: str | None = None  # in place of the suite's, with {question}
    max_tokens: int | None = None  # in place of the suite's
    max_tiles: int | None = None  # per picture
    limit: int | None = None  # questions, spread evenly over the suite
    skip_bad: bool = False  # leave out questions that fail instead of stopping

    def __post_init__(self) -> None:
        check_types(self)
        if self.prompt is not None and "{question}" not in self.prompt:
            raise EdgeVLMError("The prompt has no {question} in it: write where the question goes.")
        for name in ("max_tokens", "max_tiles", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EdgeVLMError(f"{name.replace('_', '-')} is {value}: it should be 1 or more.")


@dataclass(frozen=True)
class Report:
    suite: str
    runtime: str
    results: tuple[Result, ...]
    metrics: dict[str, float]
    problems: tuple[str, ...]  # questions that were left out, and why
    seconds: float  # of asking; answers from an earlier run took none
    order: tuple[str, ...] = ()  # of skills

    @property
    def score(self) -> float:
        return float(summary([r.scored.score for r in self.results])["score"])

    def skills(self) -> dict[str, dict[str, float | int]]:
        """Mean score with its 95 % interval, by skill, in the order of the suite."""
        by_skill: dict[str, list[float]] = {skill: [] for skill in self.order}
        for result in self.results:
            by_skill.setdefault(result.item.skill, []).append(result.scored.score)
        return {skill: summary(scores) for skill, scores in by_skill.items() if scores}

    def scores(self) -> dict[str, dict[str, float]]:
        """By skill, the score of each question by its digest's beginning, by which two runs find equal questions."""
        found: dict[str, dict[str, float]] = {}
        for result in self.results:
            found.setdefault(result.item.skill, {})[fingerprint([result.item])[:16]] = result.scored.score
        return found

    def to_dict(self, bundle: str) -> dict[str, Any]:
        """The JSON of `edgevlm eval --json`."""
        whole = summary([r.scored.score for r in self.results])
        return {
            "bundle": bundle,
            "suite": self.suite,
            "runtime": self.runtime,
            "questions": len(self.results),
            "score": whole["score"],
            "low": whole["low"],
            "high": whole["high"],
            "skills": self.skills(),
            "scores": self.scores(),
            "metrics": self.metrics,
            "left_out": list(self.problems),
            "seconds": round(self.seconds, 3),
        }


def evaluate(
    bundle: Bundle,
    runtime: Runtime,
    suite: Suite,
    items: list[Item],
    options: EvalOptions | None = None,
    *,
    out: Path | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Ask every item and score the answers.

    out: a file of one JSON line per answer, written as answers come, and found as `out`.part until the last. resume:
    take the answers that an earlier run left there, and score them again. force: replace `out`. Raises EdgeVLMError
    where it exists, or belongs to another run.
    """
    options = options or EvalOptions()
    items = _by_picture(_spread(items, options.limit))
    head = {
        "suite": suite.name, "runtime": runtime.name, "items": fingerprint(items),
        "bundle": sha256(bundle.folder / MANIFEST), "questions": len(items), "prompt": options.prompt,
        "max_tokens": options.max_tokens, "max_tiles": options.max_tiles,
    }  # fmt: skip
    start = time.monotonic()
    results: list[Result] = []
    problems: list[str] = []
    ask = _Session(bundle, runtime, suite, options)
    with answer_file(out, head, resume=resume, force=force) as lines:
        for done, item in enumerate(items):
            if progress:
                progress(f"eval: {suite.name}", done, len(items))
            answer = lines.known.get(item.id)
            if answer is None:
                try:
                    item, answer = ask(item)
                except EdgeVLMError as error:
                    problem = f"question '{item.id}' about {', '.join(p.key for p in item.pictures) or 'no picture'}"
                    if not options.skip_bad:
                        raise EdgeVLMError(f"{problem}: {error} Or leave it out with --skip-bad.") from None
                    problems.append(f"{problem}: {error}")
                    continue
                lines.write(item, answer, suite)
            elif "bins" in item.data:
                item = ask.measured(item)
            results.append(Result(item, answer, suite.score(item, answer)))
    if progress:
        progress(f"eval: {suite.name}", len(items), len(items))
    if not results:
        raise EdgeVLMError(f"No question could be asked: {problems[0]}")
    took = time.monotonic() - start
    metrics = suite.metrics(results)
    return Report(suite.name, runtime.name, tuple(results), metrics, tuple(problems), took, suite.skills)


class _Session:
    """Answers one question at a time; decoded pictures are kept for later questions about them."""

    def __init__(self, bundle: Bundle, runtime: Runtime, suite: Suite, options: EvalOptions) -> None:
        self._pipeline = Pipeline(bundle, runtime, reuse=False)  # a score is the same in any order, and resumed
        self._tokenizer: Tokenizer = load_tokenizer(bundle.path("tokenizer.json"))
        self._suite, self._options = suite, options
        self._generate = GenerateOptions(max_tokens=options.max_tokens or suite.max_tokens)
        self._decoded: dict[str, Image.Image] = {}

    def __call__(self, item: Item) -> tuple[Item, str]:
        conversation, pictures = self._suite.conversation(item, self._options.prompt)
        images = [self._open(picture) for picture in pictures]
        answer = self._pipeline.answer(images, conversation, self._generate, max_tiles=self._options.max_tiles)
        return self.measured(item), answer_text(self._pipeline.prompter, self._tokenizer, answer.ids)

    def measured(self, item: Item) -> Item:
        """The item with its picture's size, where its scorer needs it."""
        if item.skill != "grounding" or not item.pictures:
            return item
        return replace(item, data={**item.data, "size": self._open(item.pictures[0]).size})

    def _open(self, picture: Picture) -> Image.Image:
        if picture.key not in self._decoded:
            if len(self._decoded) >= 8:
                self._decoded.clear()
            spec = self._pipeline.bundle.image_spec
            self._decoded[picture.key] = decode_image(picture.load(), spec.background)
        return self._decoded[picture.key]


def answer_text(prompter: Prompter, tokenizer: Tokenizer, ids: tuple[int, ...]) -> str:
    """The text of an answer as a scorer reads it: with <loc_N> tokens, which are special and silent elsewhere."""
    pieces, plain = [], list[int]()
    for token in ids:
        name = tokenizer.id_to_token(token) or ""
        if _LOC.fullmatch(name):
            pieces += [prompter.decode(plain), name]
            plain = []
        else:
            plain.append(token)
    return "".join([*pieces, prompter.decode(plain)]).strip()


def _spread(items: list[Item], limit: int | None) -> list[Item]:
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def _by_picture(items: list[Item]) -> list[Item]:
    """In the suite's order, but all questions about a picture together."""
    groups: dict[tuple[str, ...], list[Item]] = {}
    for item in items:
        groups.setdefault(tuple(picture.key for picture in item.pictures), []).append(item)
    return [item for group in groups.values() for item in group]
