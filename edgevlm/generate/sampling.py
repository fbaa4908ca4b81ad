"""Logits to the next token, as transformers' `generate` chooses it.

Its order: repetition penalty, then (only when sampling) temperature, top-k, top-p.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevlm.errors import EdgeVLMError
from edgevlm.generate.forms import check_choices, check_regex, check_stops, schema_text
from edgevlm.io.options import check_types, shown
from edgevlm.types import F32, F64, I64


@dataclass(frozen=True)
class GenerateOptions:
    """How an answer is chosen. The defaults are greedy. Raises EdgeVLMError for a value out of its range."""

    max_tokens: int = 128  # answer tokens at most, cut to what the context length leaves
    temperature: float = 0.0  # 0 takes the most likely token and ignores top_p, top_k and seed
    top_p: float = 1.0  # keep the most likely tokens that together reach this probability; 1 keeps all
    top_k: int = 0  # keep this many of the most likely tokens; 0 keeps all
    repetition_penalty: float = 1.0  # above 1 makes tokens of the prompt and of the answer less likely
    seed: int = 0
    # Check several guessed tokens in one call: None where a greedy answer stays what it is, True also where two close
    # tokens may change places.
    lookup: bool | None = None
    ignore_stop: bool = False  # go on to max_tokens: for measuring speed over a fixed number of tokens
    # What the answer has to be, at most one of them: JSON that the schema allows, one of the texts, or a match of the
    # regular expression from end to end. They need the extra `constrain`.
    schema: Mapping[str, Any] | str | None = None  # a JSON Schema, or its text, which it is kept as
    choices: tuple[str, ...] | None = None
    regex: str | None = None
    scores: bool = False  # also the log probability of each choice
    stop: tuple[str, ...] = ()  # the answer ends before the first of these texts

    def __post_init__(self) -> None:
        if self.schema is not None:
            object.__setattr__(self, "schema", schema_text(self.schema))
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name, least in (("max_tokens", 1), ("top_k", 0), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise EdgeVLMError(f"{name} is {shown(value)}: give a whole number of at least {least}.")
        for name, low, low_is_in, high, wanted in (
            ("temperature", 0.0, True, math.inf, "of at least 0 (0 is greedy)"),
            ("top_p", 0.0, False, 1.0, "above 0 and at most 1"),
            ("repetition_penalty", 0.0, False, math.inf, "above 0 (1 is no penalty)"),
        ):
            value = getattr(self, name)
            number = type(value) in (int, float) and math.isfinite(value)
            if not number or not (low < value <= high or (low_is_in and value == low)):
                raise EdgeVLMError(f"{name} is {shown(value)}: give a number {wanted}.")
        check_types(self)
        if given := [name for name in ("schema", "choices", "regex") if getattr(self, name) is not None]:
            if len(given) > 1:
                raise EdgeVLMError(f"An answer has one form, and {' and '.join(given)} are given: leave one.")
            if self.ignore_stop:
                raise EdgeVLMError(f"ignore_stop goes on where {given[0]} ends an answer: leave one of them out.")
        if self.choices is not None:
            check_choices(self.choices)
        elif self.scores:
            raise EdgeVLMError("scores are of choices: give choices, or leave scores out.")
        if self.regex is not None:
            check_regex(self.regex)
        check_stops(self.stop)

    @property
    def constrained(self) -> bool:
        """Whether the answer has to be of a form."""
        return self.schema is not None or self.choices is not None or self.regex is not None


class Sampler:
    """Chooses one answer's tokens. Same options and logits, same tokens."""

    def __init__(self, options: GenerateOptions, prompt: Sequence[int]) -> None:
        self._options = options
        # Only where they are used: numpy imports what these two take on their first use, 20 ms of a start.
        if options.repetition_penalty != 1.0:
            self._seen = np.unique(np.asarray(prompt, np.int64))
        if options.temperature != 0.0:
            self._random = np.random.default_rng(options.seed)

    def choose(self, logits: F32) -> int:
        """The next token after `logits` (V,); it counts as seen from then on."""
        options = self._options
        if options.repetition_penalty != 1.0:
            logits = penalize(logits, self._seen, options.repetition_penalty)
        if options.temperature == 0.0:
            token = int(np.argmax(logits))
        else:
            chances = probabilities(logits, options.temperature, options.top_k, options.top_p)
            # Inverse transform: one uniform number per token, whatever the vocabulary's size.
            cumulative = np.cumsum(chances)
            drawn = self._random.random() * cumulative[-1]
            token = int(np.searchsorted(cumulative, drawn, side="right"))
        if options.repetition_penalty != 1.0:
            self._seen = np.union1d(self._seen, token)
        return token


def penalize(logits: F32, seen: I64, penalty: float) -> F32:
    """Repetition penalty (Keskar et al. 2019, arXiv 1909.05858): less likely, whatever the logit's sign."""
    result = logits.copy()
    known = seen[seen < len(logits)]
    values = result[known]
    result[known] = np.where(values < 0, values * np.float32(penalty), values / np.float32(penalty))
    return result


def probabilities(logits: F32, temperature: float, top_k: int = 0, top_p: float = 1.0) -> F64:
    """What is sampled from, (V,) summing to 1; tokens that top-k or top-p drop have 0.

    Ties at the k-th value all stay, and the token that crosses `top_p` stays, as in transformers.
    """
    scores = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # shifted first: a tiny temperature overflows to -inf, not to nan
        scores = (scores - scores.max()) / temperature
    if 0 < top_k < len(scores):
        scores[scores < np.partition(scores, -top_k)[-top_k]] = -np.inf
    if top_p < 1.0:
        order = np.argsort(scores, kind="stable")
        dropped = np.cumsum(_softmax(scores[order])) <= 1.0 - top_p
        dropped[-1] = False
        scores[order[dropped]] = -np.inf
    return _softmax(scores)


def _softmax(scores: F64) -> F64:
    weights = np.exp(scores - scores.max())
    result: F64 = weights / weights.sum()
    return result
