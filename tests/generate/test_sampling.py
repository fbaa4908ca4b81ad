"""Sampling against transformers' own logits processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from edgevlm.errors import EdgeVLMError
from edgevlm.generate.loop import GenerateOptions
from edgevlm.generate.sampling import Sampler, penalize, probabilities

# Distinct values: which of two equal logits stays at a cut is not defined by either side.
LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=60, unique=True).map(
    lambda values: np.array(values, np.float32)
)


def transformers_probabilities(logits, ids, penalty, temperature, top_k, top_p):
    """In the order in which `GenerationMixin._get_logits_processor` builds its list."""
    chain = LogitsProcessorList()
    if penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(penalty))
    chain.append(TemperatureLogitsWarper(temperature))
    if top_k:
        chain.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        chain.append(TopPLogitsWarper(top_p))
    scores = chain(torch.tensor([ids]), torch.from_numpy(logits.astype(np.float64))[None])
    return torch.softmax(scores, -1)[0].numpy()


@settings(deadline=None, max_examples=300)
@given(
    LOGITS,
    st.lists(st.integers(0, 70), min_size=1, max_size=20),
    st.floats(0.25, 4.0),
    st.floats(0.05, 5.0),
    st.integers(0, 70),
    st.floats(0.01, 1.0),
)
def test_probabilities_are_those_of_transformers(logits, ids, penalty, temperature, top_k, top_p):
    expected = transformers_probabilities(logits, ids, float(np.float32(penalty)), temperature, top_k, top_p)
    penalized = penalize(logits, np.unique(ids), penalty) if penalty != 1.0 else logits
    ours = probabilities(penalized, temperature, top_k, top_p)
    kept, wanted = ours > 0, expected > 0
    if (kept == wanted).all():
        np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=1e-12)
        return
    # The two may part only at the cut: a token whose cumulative probability is 1 - top_p up to rounding, or
    # two logits that the penalty in float32 made equal.
    full = transformers_probabilities(logits, ids, float(np.float32(penalty)), temperature, top_k, 1.0)
    order = np.argsort(full)
    cumulative = np.cumsum(full[order])
    for token in np.flatnonzero(kept != wanted):
        at_cut = abs(cumulative[np.flatnonzero(order == token)[0]] - (1 - top_p)) < 1e-4
        tied = np.sum(np.isclose(full, full[token], rtol=1e-5, atol=0)) > 1 or full[token] < 1e-12
        rank = np.sum(np.isclose(penalized, penalized[token], rtol=1e-6)) > 1
        assert at_cut or tied or rank


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
def test_draws_follow_the_probabilities(temperature):
    logits = np.array([2.0, 1.0, 0.0, -1.0, 5.0], np.float32)
    sampler = Sampler(GenerateOptions(temperature=temperature, top_k=4, seed=3), [0])
    counts = np.bincount([sampler.choose(logits) for _ in range(4000)], minlength=5) / 4000
    expected = transformers_probabilities(logits, [0], 1.0, temperature, 4, 1.0)
    assert counts[3] == 0
    np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(0.25 / 4000))


def test_a_seed_gives_one_sequence_and_another_gives_another():
    logits = np.linspace(0, 1, 50, dtype=np.float32)

    def draw(seed):
        sampler = Sampler(GenerateOptions(temperature=1.0, seed=seed), [0])
        return [sampler.choose(logits) for _ in range(30)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


@given(LOGITS)
def test_greedy_takes_the_largest_and_top_k_of_one_does_the_same(logits):
    best = int(torch.from_numpy(logits).argmax())
    assert Sampler(GenerateOptions(), [0]).choose(logits) == best
    assert Sampler(GenerateOptions(temperature=5.0, top_k=1), [0]).choose(logits) == best


def test_the_penalty_works_without_sampling_and_counts_the_answer_too():
    logits = np.array([4.0, 3.0, -1.0], np.float32)
    sampler = Sampler(GenerateOptions(repetition_penalty=2.0), [2])
    assert [sampler.choose(logits) for _ in range(3)] == [0, 1, 0]
    assert penalize(logits, np.array([2, 99]), 2.0).tolist() == [4.0, 3.0, -2.0]


@pytest.mark.parametrize("temperature", [1e-300, 5e-324, 1e300])
def test_extreme_temperatures_stay_probabilities(temperature):
    chances = probabilities(np.array([1.0, 2.0, 1.5], np.float32), temperature, top_p=0.9)
    assert np.isfinite(chances).all() and chances.sum() == pytest.approx(1)
    assert chances.argmax() == 1 or temperature > 1


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"max_tokens": 0}, "max_tokens is 0: give a whole number of at least 1."),
        ({"max_tokens": 2.5}, "max_tokens is 2.5: give a whole number of at least 1."),
        ({"max_tokens": True}, "max_tokens is True: give a whole number of at least 1."),
        ({"max_tokens": "9"}, "max_tokens is '9': give a whole number of at least 1."),
        ({"temperature": -0.1}, "temperature is -0.1: give a number of at least 0 (0 is greedy)."),
        ({"temperature": float("nan")}, "temperature is nan: give a number of at least 0 (0 is greedy)."),
        ({"temperature": float("inf")}, "temperature is inf: give a number of at least 0 (0 is greedy)."),
        ({"temperature": None}, "temperature is None: give a number of at least 0 (0 is greedy)."),
        ({"top_p": 0}, "top_p is 0: give a number above 0 and at most 1."),
        ({"top_p": 1.01}, "top_p is 1.01: give a number above 0 and at most 1."),
        ({"top_k": -1}, "top_k is -1: give a whole number of at least 0."),
        (
            {"repetition_penalty": 0.0},
            "repetition_penalty is 0.0: give a number above 0 (1 is no penalty).",
        ),
        ({"seed": -1}, "seed is -1: give a whole number of at least 0."),
    ],
)
def test_bad_options_are_one_sentence(values, sentence):
    with pytest.raises(EdgeVLMError) as caught:
        GenerateOptions(**values)
    assert str(caught.value) == sentence
