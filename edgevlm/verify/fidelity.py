"""How far a bundle on an engine is from the original model, token by token: KL divergence and the same first choice.

The original answers questions about pictures, computed in float32 on its own weights. Every other runtime reads the
same pictures with its own encoder and then the original's answer token by token: every position has the same history.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgevlm.bundle.manifest import Bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.generate.loop import Pipeline, Prompt
from edgevlm.inputs.layout import merge
from edgevlm.runtimes.base import Runtime
from edgevlm.types import F32
from edgevlm.verify.report import kl_divergence

Question = tuple[Path | Image.Image, str]


@dataclass(frozen=True, eq=False)
class OriginalAnswer:
    """What the original said: answer ids (A,), its stop token included, and the logits (A, V) they came from."""

    ids: tuple[int, ...]
    logits: F32


@dataclass(frozen=True)
class Fidelity:
    """kl: mean over positions of KL(original || this), nats. agreement: share of positions with the same choice."""

    kl: float
    agreement: float
    positions: int


def held_out(count: int) -> list[Question]:
    """Two questions about each of `count` generated scenes that neither training, calibration nor `edgevlm eval` sees.

    They are from the test split with a seed of its own: one asks for a caption, so that answers are not all one word.
    """
    from edgevlm.scenes import ask, make_scene

    found: list[Question] = []
    for number in range(count):
        scene = make_scene("test", 1, number)
        drawn = ask(scene)
        caption = [q.question for q in drawn if q.skill == "caption"][:1]
        others = [q.question for q in drawn if q.skill not in ("caption", "grounding")]
        found += [(scene.picture, words) for words in [*caption, *others[number % len(others) :][:1]]]
    return found


def original_answers(
    bundle: Bundle, original: Runtime, questions: Iterable[Question], tokens: int, max_tiles: int | None = None
) -> list[OriginalAnswer]:
    """The original's greedy answers, up to `tokens` each. bundle: any of its bundles, for preprocessing and prompt."""
    pipeline, stops = Pipeline(bundle, original), bundle.prompt_spec.stop_ids
    answers = []
    for picture, words in questions:
        prompt = pipeline.prepare([picture], words, tokens, max_tiles=max_tiles)
        steps = [_begin(original, prompt)]
        while int(steps[-1].argmax()) not in stops and len(steps) < prompt.max_tokens:
            steps.append(original.decoder.step(int(steps[-1].argmax())))
        logits = np.stack(steps)
        answers.append(OriginalAnswer(tuple(int(token) for token in logits.argmax(-1)), logits))
    return answers


def measure_fidelity(
    bundle: Bundle,
    runtime: Runtime,
    questions: Sequence[Question],
    answers: Sequence[OriginalAnswer],
    max_tiles: int | None = None,
) -> Fidelity:
    """`runtime` through the same questions and answers."""
    if not answers:
        raise EdgeVLMError("There is no question to compare on: give at least one.")
    pipeline = Pipeline(bundle, runtime)
    total, same, positions = 0.0, 0, 0
    for (picture, words), answer in zip(questions, answers, strict=True):
        prompt = pipeline.prepare([picture], words, len(answer.ids), max_tiles=max_tiles)
        steps = [_begin(runtime, prompt)]
        steps += [runtime.decoder.step(token) for token in answer.ids[:-1]]
        logits = np.stack(steps)
        total += kl_divergence(answer.logits, logits) * len(steps)
        same += int((logits.argmax(-1) == answer.logits.argmax(-1)).sum())
        positions += len(steps)
    return Fidelity(total / positions, same / positions, positions)


def _begin(runtime: Runtime, prompt: Prompt) -> F32:
    """Logits (V,) after the prompt with its pictures."""
    features = runtime.encoder.encode(prompt.views)
    runtime.decoder.rewind(0)
    return runtime.decoder.forward(merge(runtime.decoder.embed(prompt.ids), prompt.layout, features), prompt.layout)
