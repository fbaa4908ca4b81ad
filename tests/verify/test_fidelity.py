"""KL and agreement along the original's own answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.runtimes import open_runtime
from edgevlm.runtimes.base import Runtime
from edgevlm.verify.fidelity import OriginalAnswer, held_out, measure_fidelity, original_answers

PICTURE = Image.new("RGB", (40, 30), (200, 30, 30))


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


def runtime(both: Fixed) -> Runtime:
    return Runtime(both, both)


class Fixed:
    """An encoder and a decoder: says the same distribution whatever it reads, and remembers what it read."""

    name = device = "fixed"

    def __init__(self, probabilities: list[float], bundle: Bundle) -> None:
        self._spec = bundle.manifest.spec
        self.logits = np.full(self._spec.decoder.vocab_size, -100, np.float32)
        self.logits[: len(probabilities)] = np.log(np.array(probabilities, np.float32))
        self.steps: list[int] = []

    def encode(self, views: Any) -> Any:
        grids = (self._spec.token_grid(*view.shape[:2]) for view in views)
        return [np.zeros((rows * cols, self._spec.decoder.hidden_size), np.float32) for rows, cols in grids]

    def embed(self, ids: Any) -> Any:
        return np.ones((len(ids), self._spec.decoder.hidden_size), np.float32)

    def close(self) -> None:
        pass

    def rewind(self, length: int) -> None:
        pass

    def forward(self, embeds: Any, layout: Any = None) -> Any:
        return self.logits

    def step(self, token: int) -> Any:
        self.steps.append(token)
        return self.logits


def test_known_distributions(bundle: Bundle) -> None:
    """KL((1/2, 1/4, 1/4) || (1/4, 1/2, 1/4)) = 1/2 ln 2 - 1/4 ln 2, worked by hand."""
    questions = [(PICTURE, "What is this?")]
    teacher = Fixed([0.5, 0.25, 0.25], bundle)
    lessons = original_answers(bundle, runtime(teacher), questions, 4)
    assert lessons[0].ids == (0, 0, 0, 0) and teacher.steps == [0, 0, 0]
    student = Fixed([0.25, 0.5, 0.25], bundle)
    found = measure_fidelity(bundle, runtime(student), questions, lessons)
    assert found.kl == pytest.approx(0.25 * np.log(2), rel=1e-5)
    assert (found.agreement, found.positions) == (0.0, 4)
    assert student.steps == [0, 0, 0], "the student reads the teacher's words, not its own"
    same = measure_fidelity(bundle, runtime(Fixed([0.5, 0.25, 0.25], bundle)), questions, lessons)
    assert same.kl == pytest.approx(0.0, abs=1e-9) and same.agreement == 1.0


def test_an_answer_ends_with_its_stop_token(bundle: Bundle) -> None:
    stop = bundle.prompt_spec.stop_ids[0]
    teacher = Fixed([1e-9] * stop + [1.0], bundle)
    assert original_answers(bundle, runtime(teacher), [(PICTURE, "q")], 4)[0].ids == (stop,)


def test_positions_weigh_alike_whatever_the_answer(bundle: Bundle) -> None:
    """One answer of one token with KL a and one of three with KL 0: the mean is a quarter of a."""
    first, second = Fixed([0.5, 0.5], bundle).logits, Fixed([0.25, 0.75], bundle).logits
    lessons = [OriginalAnswer((0,), first[None]), OriginalAnswer((1, 1, 1), np.stack([second] * 3))]
    found = measure_fidelity(bundle, runtime(Fixed([0.25, 0.75], bundle)), [(PICTURE, "a"), (PICTURE, "b")], lessons)
    whole = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert found.kl == pytest.approx(whole / 4, rel=1e-5) and found.positions == 4
    with pytest.raises(EdgeVLMError, match="no question"):
        measure_fidelity(bundle, runtime(Fixed([1.0], bundle)), [], [])


def test_an_engine_follows_the_reference_and_a_changed_picture_shows(bundle: Bundle) -> None:
    questions = [(PICTURE, "What is this?"), (PICTURE.rotate(90), "How many?")]
    reference, engine = open_runtime(bundle, "eager"), open_runtime(bundle, "onnxruntime", threads=1)
    lessons = original_answers(bundle, reference, questions, 6, max_tiles=1)
    found = measure_fidelity(bundle, engine, questions, lessons, max_tiles=1)
    assert found.kl < 1e-6 and found.agreement == 1.0
    other = [(Image.effect_noise((40, 30), 90).convert("RGB"), words) for _, words in questions]
    assert measure_fidelity(bundle, engine, other, lessons, max_tiles=1).kl > 100 * max(found.kl, 1e-9)
    engine.close()


def test_held_out_questions_are_many_kinds_and_the_same_every_time() -> None:
    questions = held_out(3)
    assert len(questions) == 6 and [q for _, q in held_out(3)] == [q for _, q in questions]
    assert len({q for _, q in questions}) > 3
