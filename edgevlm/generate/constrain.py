"""Answers of a given form, through llguidance: before each token, which ones may follow.

Many chat formats make a model begin its answer with a space. One is allowed before any form, and is no part of the
answer's text; so a form itself never begins with a space.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from edgevlm.errors import EdgeVLMError, install_hint
from edgevlm.generate.sampling import GenerateOptions
from edgevlm.generate.scores import answer_ids, check_scores, log_probabilities
from edgevlm.inputs.tokenizer import library_errors
from edgevlm.types import F32

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from edgevlm.bundle.manifest import Bundle
    from edgevlm.inputs.prompt import Prompter
    from edgevlm.runtimes.base import Decoder

LEAD = " "  # what an answer may begin with beside its form

# One way to write each JSON value, as models write it: with free white space, some write nothing else.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# What only one text can follow is not put through the tokenizer, whose normalizer may write another one.
_OPTIONS = '%llguidance {"no_forcing": true}\n'
_MOST_STATES = 50_000  # of the machine that reads tokens, 1 to 2 kB each; a usual schema takes some hundreds


class Forms:
    """Makes the forms that the answers of one pipeline are asked for."""

    def __init__(self, bundle: Bundle, prompter: Prompter) -> None:
        self._bundle, self._prompter = bundle, prompter
        self._grammar: Grammar | None = None  # of the first answer that asks for a form

    def start(self, options: GenerateOptions, decoder: Decoder, prompt: int, thinking: bool | None) -> Form | None:
        """The form of one answer behind a prompt of so many tokens; None where none is asked for.

        Raises EdgeVLMError, before any work of the engine, for a form that this bundle or engine cannot give.
        """
        if not options.constrained:
            return None
        if thinking:
            raise EdgeVLMError("Thoughts have no form: leave out thinking, or the schema, choices or regex.")
        spec = self._bundle.manifest.spec.decoder
        scored: dict[str, list[int]] = {}
        if options.scores:
            choices = options.choices or ()
            scored = dict(zip(choices, answer_ids(self._prompter, choices, thinking), strict=True))
            check_scores(decoder, spec.replaces, spec.context_length - prompt, scored)
        if self._grammar is None:
            stops = self._bundle.prompt_spec.stop_ids
            self._grammar = Grammar(self._prompter.tokenizer, spec.vocab_size, stops)
        return Form(self._grammar.constraint(options), scored)


@dataclass(frozen=True, eq=False)
class Form:
    """What one answer has to look like, and the choices to score."""

    constraint: Constraint
    _scored: dict[str, list[int]]

    def scores(self, decoder: Decoder, logits: F32) -> dict[str, float] | None:
        """The logarithm of each choice's probability (`log_probabilities`); None where no scores are asked for."""
        if not self._scored:
            return None
        found = log_probabilities(decoder, logits, list(self._scored.values()))
        return dict(zip(self._scored, found.tolist(), strict=True))


class Grammar:
    """The tokens of one bundle as llguidance knows them: built once, in a fraction of a second."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int]) -> None:
        """vocab_size: V, the length of the model's logits; it may exceed the tokenizer's. stop_ids: end an answer.

        Raises EdgeVLMError where llguidance is not installed or does not know such a tokenizer.
        """
        try:
            import llguidance
        except ImportError:
            raise EdgeVLMError(
                f"Answers of a given form need llguidance, which is not installed: {install_hint('constrain')}."
            ) from None
        self._library, self._stops, self._size = llguidance, list(stop_ids), vocab_size
        with library_errors("llguidance cannot use this bundle's tokenizer", "ask without schema, choices and regex"):
            self._tokens = llguidance.LLTokenizer(tokenizer.to_str(), n_vocab=vocab_size, eos_token=self._stops[0])

    def constraint(self, options: GenerateOptions) -> Constraint:
        """The form that the options ask for. Raises EdgeVLMError for one that cannot be used."""
        if options.schema is not None:
            what, form = "schema", _literal({**json.loads(str(options.schema)), "x-guidance": _SPACING})
            grammar = f'start: "{LEAD}"? form\nform: %json {form}'
        elif options.choices is not None:
            what, form = "choices", " | ".join(map(_literal, options.choices))
            grammar = f'start: FORM\nFORM: "{LEAD}"? ({form})'
        else:
            # \d, \w and \s are those of ASCII, as in Python's re.ASCII: Unicode's differ from library to library.
            what, form = "regex", self._library.regex_to_lark(options.regex, "dws")
            grammar = f'start: FORM\nFORM: "{LEAD}"? (/{form}/ & /([^{LEAD}](?s:.*))?/)'
        with library_errors(f"The {what} cannot be used", "make it simpler"):
            limits = self._library.LLParserLimits(max_lexer_states=_MOST_STATES, verbose_errors=False)
            matcher = self._library.LLMatcher(self._tokens, _OPTIONS + grammar, log_level=0, limits=limits)
            made = Constraint(matcher, self._stops, self._size, what)
            first = np.flatnonzero(made.allowed)[:16].tolist()
            if not made.accepting and all(not self._tokens.decode_str([token]).strip(LEAD) for token in first):
                raise EdgeVLMError(f"No text is of the form that the {what} asks for: correct it.")
        return made


class Constraint:
    """The form of one answer, as far as it has come. Raises EdgeVLMError where it becomes too complex to follow."""

    def __init__(self, matcher: Any, stop_ids: list[int], size: int, what: str) -> None:
        """matcher: llguidance's. size: V, of the logits. what: the form is called."""
        self._matcher, self._stops, self._size, self._what = matcher, stop_ids, size, what
        self.done = False  # nothing may follow
        self._allowed: npt.NDArray[np.bool_] | None = None

    @property
    def allowed(self) -> npt.NDArray[np.bool_]:
        """Whether each token may follow (V,)."""
        if self._allowed is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            if self._matcher.is_error():
                self._fail()
            self._allowed = np.unpackbits(bits, count=self._size, bitorder="little").view(np.bool_)
            self._allowed[self._stops] = self.accepting
            if not self._allowed.any():
                self._fail()
        return self._allowed

    @property
    def accepting(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_stopped() or self._matcher.is_accepting())

    def mask(self, logits: F32) -> F32:
        """Logits (V,) with -inf for each token that may not follow, in a new array."""
        result: F32 = np.where(self.allowed, logits, np.float32(-np.inf))
        return result

    def take(self, token: int) -> None:
        """The token that was chosen."""
        self._allowed = None
        if token not in self._stops and not self._matcher.consume_token(token):
            self._fail()
        self.done = token in self._stops or self._matcher.is_stopped()

    def _fail(self) -> NoReturn:
        said = reason(self._matcher.get_error())
        if not said or said.startswith("NoExtension"):
            said = "none of the model's tokens may follow"
        raise EdgeVLMError(f"The {self._what} cannot be used ({said}): correct it, or make it simpler.")


def _literal(value: Any) -> str:
    """JSON as a grammar takes it: in visible ASCII."""
    return json.dumps(value).replace("\x7f", "\\u007f")


def reason(said: str) -> str:
    """What is wrong, out of an error of llguidance: the sentence without places in a grammar that nobody wrote."""
    found = re.search(r"^error: (.*)$", said, re.MULTILINE)
    first = found[1] if found else said.partition("\n")[0]
    for begin in ("failed to compile JSON schema: ", "(in regex): "):
        first = first.rpartition(begin)[2]
    first = re.sub(r"^at \d+\(\d+\): ", "", first)[:200]
    return first if first.isprintable() else ascii(first)
