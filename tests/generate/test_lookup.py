"""An answer is that of single calls: on engines that round positions together otherwise than alone, and on real ones"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
from cases import heavy_but
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm.generate.drafter import LENGTHS, Drafter
from edgevlm.generate.lookup import COARSE, Lookup, Trial
from edgevlm.generate.loop import GenerateOptions, Pipeline
from edgevlm.runtimes import open_runtime
from edgevlm.runtimes.base import Decoder, DraftDecoder
from edgevlm.types import F32

VOCABULARY = 12
QUESTIONS = (
    "Repeat the question. The picture shows a red circle and two blue squares. The picture shows a red circle and two",
    "What is in the picture? What is in the picture? What is in the picture?",
)


class Uneven(Decoder):
    """Says tokens by the last two, among them near-ties, and is off by up to `error` where any position that it holds
    was computed among others."""

    name, device, rounds = "uneven", "none", False

    def __init__(self, seed: int, error: float, ties: float) -> None:
        rng = np.random.default_rng(seed)
        self._table = rng.normal(0, 3, (VOCABULARY, VOCABULARY, VOCABULARY)).astype(np.float32)
        close = rng.random((VOCABULARY, VOCABULARY)) < ties
        order = np.argsort(self._table, axis=-1)
        for a, b in zip(*np.nonzero(close), strict=True):
            first, second = order[a, b, -1], order[a, b, -2]
            self._table[a, b, second] = self._table[a, b, first] - rng.uniform(0, 2 * error)
        self._error, self._held = error, list[tuple[int, bool]]()
        self.calls, self.furthest = 0, 0

    @property
    def position(self) -> int:
        return len(self._held)

    def rewind(self, length: int) -> None:
        del self._held[length:]

    def step(self, token: int) -> F32:
        self.calls += 1
        return self._append(token, True)

    @property
    def most_steps(self) -> int:
        return 99

    def steps(self, tokens: Sequence[int]) -> F32:
        self.calls += 1
        return np.array([self._append(token, False) for token in tokens])

    def _append(self, token: int, alone: bool) -> F32:
        self._held.append((token, alone))
        self.furthest = max(self.furthest, len(self._held))
        before = self._held[-2][0] if len(self._held) > 1 else 0
        logits = self._table[before, token].copy()
        if not all(exact for _, exact in self._held):
            noise = np.random.default_rng([token for token, _ in self._held])
            # At its most where the trial looks, too: it compares the largest.
            logits += np.float32(self._error) * noise.choice([-1, 1], VOCABULARY).astype(np.float32)
        return logits


def say(decoder: Uneven, prompt: list[int], count: int, *, drafts: bool, force: bool = False) -> tuple[list[int], int]:
    """An answer's tokens, and how many of them were looked up."""
    for token in prompt:
        logits = decoder.step(token)
    first = int(logits.argmax())
    decoder.calls = 0
    if not drafts:
        tokens = [first]
        while len(tokens) < count:
            tokens.append(int(decoder.step(tokens[-1]).argmax()))
        return tokens, 0
    lookup = Lookup(decoder, Drafter(prompt), Trial(), lambda row: int(row.argmax()), count - 1, force)
    return [first, *islice(lookup.after(first), count - 1)], lookup.looked_up


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 10**6),
    error=st.sampled_from([0.0, 1e-6, 1e-4, 3e-4, 1e-2, 1.0]),
    ties=st.sampled_from([0.0, 0.1, 0.5]),
    prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30),
    count=st.integers(1, 150),
)
def test_an_answer_is_that_of_single_calls(seed: int, error: float, ties: float, prompt: list[int], count: int) -> None:
    plain, other = (Uneven(seed, error, ties) for _ in range(2))
    wanted, _ = say(plain, prompt, count, drafts=False)
    found, looked_up = say(other, prompt, count, drafts=True)
    assert found == wanted and looked_up < count
    assert other.position == plain.position, "it holds what single calls hold"
    assert other.furthest <= plain.furthest, "and never held more"


def test_what_repeats_takes_a_fraction_of_the_calls() -> None:
    decoder = Uneven(3, 1e-5, 0.0)
    _, looked_up = say(decoder, [1, 2], 600, drafts=True)
    assert looked_up > 450 and decoder.calls < 150


def test_an_engine_that_rounds_activations_is_trusted_where_it_is_exact_alone() -> None:
    """A trial may meet differences of a last bit alone, and a step of a code comes later."""
    for error, coarse in ((0.0, False), (1e-7, True)):
        trial = Trial(rounds=True)
        trial.compare(LENGTHS[0] + 1, np.zeros(4, np.float32), np.full(4, error, np.float32))
        assert trial.coarse is coarse
    assert not Trial(error=1e-7).coarse


def test_a_coarse_engine_is_asked_once_and_left_alone_unless_it_is_forced() -> None:
    decoder = Uneven(3, COARSE, 0.0)
    _, looked_up = say(decoder, [1, 2], 600, drafts=True)
    assert looked_up <= max(LENGTHS) and decoder.calls <= 600
    forced = Uneven(3, COARSE, 0.0)
    _, looked_up = say(forced, [1, 2], 600, drafts=True, force=True)
    assert looked_up > 450 and forced.calls < 150


def test_no_draft_holds_what_ends_an_answer() -> None:
    drafter = Drafter([1, 2, 3, 9, 4, 1, 2, 3], never={9})
    assert drafter.draft(7) == []
    assert Drafter([1, 2, 3, 4, 5, 6, 9, 4, 1, 2, 3], never={9}).draft(7) == [4, 5, 6]


@pytest.mark.parametrize(
    "engine", ["onnxruntime", pytest.param("onnxruntime portable", marks=pytest.mark.heavy), "eager", "llama.cpp"]
)
@pytest.mark.parametrize("form", heavy_but(["int4"], ["fp32", "int4"]))
def test_greedy_answers_are_the_same_with_and_without(engine: str, form: str, gguf_bundle) -> None:
    if engine == "llama.cpp" and importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    bundle = gguf_bundle(form, "default")
    name, _, portable = engine.partition(" ")
    runtime = open_runtime(bundle, name, threads=None if name == "eager" else 1, portable=bool(portable))
    pipeline, helped = Pipeline(bundle, runtime, reuse=False), 0
    for question in QUESTIONS:
        plain, looked = (
            pipeline.answer([], question, GenerateOptions(max_tokens=100, ignore_stop=True, lookup=lookup))
            for lookup in (False, None)
        )
        assert looked.ids == plain.ids and looked.text == plain.text
        assert looked.timings.answer_tokens == plain.timings.answer_tokens == 100
        helped += looked.timings.looked_up
    # Activations in 8 bits make a step of such a code of the last bit in which onnxruntime's attention differs for one
    # row and for several. llama.cpp computes every row alike.
    assert (helped > 50) == ((engine, form) != ("onnxruntime", "int4"))
    runtime.close()


@pytest.fixture(scope="module")
def pipeline(gguf_bundle):
    bundle = gguf_bundle("fp32", "default")
    runtime = open_runtime(bundle, "onnxruntime", threads=1)
    yield Pipeline(bundle, runtime)
    runtime.close()


def test_steps_are_a_step_for_each_and_are_forgotten_one_by_one(pipeline) -> None:
    decoder = pipeline.runtime.decoder
    assert isinstance(decoder, DraftDecoder)
    prompt, tokens = np.arange(1, 140), [7, 30, 31, 7, 30, 31, 9, 11]  # across the end of the first buffer
    for start in (3, 126, 139):
        decoder.rewind(0)
        decoder.forward(decoder.embed(prompt[:start]))
        alone = np.array([decoder.step(token) for token in tokens])
        for count in (1, 2, 4, 8):
            decoder.rewind(start)
            np.testing.assert_allclose(decoder.steps(tokens[:count]), alone[:count], atol=1e-4)
            assert decoder.position == start + count
        decoder.rewind(start + 3)
        np.testing.assert_allclose(decoder.step(tokens[3]), alone[3], atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 9, 40])
def test_max_tokens_ends_an_answer_within_a_draft(pipeline, count: int) -> None:
    longer = pipeline.answer([], QUESTIONS[0], GenerateOptions(max_tokens=60, ignore_stop=True))
    answer = pipeline.answer([], QUESTIONS[0], GenerateOptions(max_tokens=count, ignore_stop=True))
    assert answer.ids == longer.ids[:count] and longer.timings.looked_up > 20
    assert pipeline.runtime.decoder.position == answer.timings.prompt_tokens + count - 1


def test_pieces_come_token_by_token(pipeline) -> None:
    options = GenerateOptions(max_tokens=60, ignore_stop=True)
    plain = list(pipeline.ask([], QUESTIONS[0], GenerateOptions(max_tokens=60, ignore_stop=True, lookup=False)))
    assert list(pipeline.ask([], QUESTIONS[0], options)) == plain


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"repetition_penalty": 1.1}, {"lookup": False}])
def test_only_the_most_likely_tokens_are_looked_up(pipeline, options) -> None:
    answer = pipeline.answer([], QUESTIONS[0], GenerateOptions(max_tokens=60, ignore_stop=True, **options))
    assert answer.timings.looked_up == 0
