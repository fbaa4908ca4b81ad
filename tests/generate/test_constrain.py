"""Answers of a given form: every one has it, by the validator of jsonschema and by Python's re, on every engine."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from tiny import tokenizer as tiny
from tokenizers import Tokenizer

from edgevlm.bundle.manifest import open_bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.generate.constrain import LEAD, Grammar
from edgevlm.generate.loop import GenerateOptions, Pipeline
from edgevlm.generate.reader import Reader
from edgevlm.inputs.tokenizer import StreamDecoder, inner_tokenizer
from edgevlm.runtimes import open_runtime

QUESTION = "What is in the picture?"
TOKENIZERS = {
    "byte-level": lambda: tiny.qwen(),
    "tekken": lambda: tiny.tekken(["<s>", "</s>", "[INST]"]),
    "sentencepiece, prepend": lambda: tiny.llama(["<image>"]),
    "sentencepiece, metaspace": lambda: tiny.llama(["<image>"], form="metaspace"),
    "gemma": lambda: tiny.gemma(["<start_of_image>", "<end_of_turn>"]),
}
WIDER = 5  # rows of logits that no token has


@cache
def vocabulary(name: str) -> tuple[Tokenizer, Grammar, tuple[int, ...], int]:
    """A tokenizer, its grammar, its stop ids and the length of the logits."""
    tokenizer = TOKENIZERS[name]()
    special = [int(id_) for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    size, stops = tokenizer.get_vocab_size() + WIDER, (special[-1], special[0])
    return tokenizer, Grammar(tokenizer, size, stops), stops, size


def draw(name: str, options: GenerateOptions, seed: int, most: int = 200) -> tuple[str, bool]:
    """A text of random tokens, of those that may follow, and whether it came to an end."""
    tokenizer, grammar, stops, size = vocabulary(name)
    constraint, rng = grammar.constraint(options), np.random.default_rng(seed)
    reader, text = Reader(StreamDecoder(tokenizer), lead=LEAD), ""
    for _ in range(most):
        logits = constraint.mask(rng.normal(0, 2, size).astype(np.float32))
        assert np.isfinite(logits[list(stops)]).all() == np.isfinite(logits[list(stops)]).any() == constraint.accepting
        assert not np.isfinite(logits[size - WIDER :]).any()
        token = int(logits.argmax())
        constraint.take(token)
        text += "" if token in stops else reader.push(token)
        if constraint.done:
            return text + reader.finish(), True
    return text + reader.finish(), False


# --- any form, any kind of tokenizer -----------------------------------------------------------------------

LETTERS = "abz019 .,:-_/\"'{}<é한🙂"


def regexes() -> st.SearchStrategy[str]:
    piece = st.sampled_from([re.escape(letter).replace("\\ ", " ") for letter in LETTERS])
    piece |= st.sampled_from([r"\d", r"\w", r"\s", r"\D", r"\W", ".", "[a-f0-3]", "[^x-z]", "[é-한]", r"\."])

    def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        repeats = st.sampled_from(["?", "{2}", "{0,3}", "{1,2}"])
        return (
            st.lists(inner, min_size=1, max_size=3).map("".join)
            | st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})")
            | st.tuples(inner, repeats).map(lambda pair: f"(?:{pair[0]}){pair[1]}")
        )

    return st.recursive(piece, larger, max_leaves=8).map(lambda regex: f"[a-z<]{regex}")


EXAMPLES = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", TOKENIZERS)
@EXAMPLES
@given(regex=regexes(), seed=st.integers(0, 10**6))
def test_a_regex_matches_the_whole_text(name: str, regex: str, seed: int) -> None:
    text, ended = draw(name, GenerateOptions(regex=regex), seed)
    assert ended and re.fullmatch(regex, text, re.ASCII), (regex, text)


@pytest.mark.parametrize("name", TOKENIZERS)
@EXAMPLES
@given(data=st.data(), lead=st.booleans())
def test_every_match_may_be_written_as_the_tokenizer_writes_it(name: str, data: st.DataObject, lead: bool) -> None:
    tokenizer, grammar, stops, _ = vocabulary(name)
    regex = data.draw(regexes())
    text = data.draw(st.from_regex(re.compile(regex, re.ASCII), fullmatch=True))
    ids = inner_tokenizer(tokenizer).encode(LEAD * lead + text, add_special_tokens=False).ids
    if tokenizer.decode(ids).lstrip(LEAD) != text:
        return  # a normalizer writes another text
    if "prepend" in name and tokenizer.id_to_token(ids[0]) == "▁" and lead:
        del ids[0]  # a space for the text's beginning before the one that is given
    constraint = grammar.constraint(GenerateOptions(regex=regex))
    for token in ids:
        assert constraint.allowed[token], (regex, text, token)
        constraint.take(token)
    assert constraint.accepting and (constraint.done or constraint.allowed[list(stops)].all())


def schemas() -> st.SearchStrategy[Any]:
    keys = st.sampled_from(["a", "b", "colour", "größe", 'a"b', "x y", "n"])
    values = st.none() | st.booleans() | st.integers(-99, 99) | st.text(LETTERS, max_size=4)
    bounds = st.tuples(st.integers(-300, 300), st.integers(0, 200))
    plain = st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["null", "boolean"]}])
    plain |= bounds.map(lambda b: {"type": "integer", "minimum": b[0], "maximum": b[0] + b[1]})
    plain |= st.lists(values, min_size=1, max_size=4).map(lambda found: {"enum": found})
    plain |= values.map(lambda value: {"const": value})
    plain |= st.tuples(st.integers(0, 2), st.integers(0, 4)).map(
        lambda n: {"type": "string", "minLength": n[0], "maxLength": sum(n)}
    )
    plain |= st.sampled_from([{"type": "string", "pattern": "^[a-c]{1,3}$"}, {"type": "string", "format": "date"}])

    def larger(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        objects = st.dictionaries(keys, inner, max_size=3).flatmap(
            lambda found: st.sets(st.sampled_from(sorted(found)) if found else st.nothing()).map(
                lambda needed: {
                    "type": "object",
                    "properties": found,
                    "required": sorted(needed),
                    "additionalProperties": False,
                }
            )
        )
        arrays = st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
            lambda a: {"type": "array", "items": a[0], "minItems": a[1], "maxItems": a[1] + a[2]}
        )
        return objects | arrays | st.lists(inner, min_size=1, max_size=3).map(lambda found: {"anyOf": found})

    return st.recursive(plain, larger, max_leaves=6)


@pytest.mark.parametrize("name", ["byte-level", "gemma"])
@EXAMPLES
@given(schema=schemas(), seed=st.integers(0, 10**6))
def test_a_schema_allows_the_value(name: str, schema: Any, seed: int) -> None:
    text, ended = draw(name, GenerateOptions(schema=schema), seed, most=2000)
    assert ended, (schema, text)
    Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize("name", TOKENIZERS)
@EXAMPLES
@given(
    choices=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=5, unique=True), seed=st.integers(0, 10**6)
)
def test_a_choice_is_one_of_them(name: str, choices: list[str], seed: int) -> None:
    """Any characters: quotes, line ends inside, controls, what begins another."""
    choices = [choice for choice in choices if choice == choice.strip()]
    if choices:
        text, ended = draw(name, GenerateOptions(choices=choices), seed)
        assert ended and text in choices


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", ["豈", "e\u0301", "Å", "<image>", "</s>", "\x7f", "a\x00b", "\ufeffa"])
def test_texts_that_a_normalizer_or_a_grammar_would_change(name: str, text: str) -> None:
    """Composed characters, names of control tokens, characters that are no text of a grammar."""
    assert draw(name, GenerateOptions(choices=[text]), 0) == (text, True)
    assert draw(name, GenerateOptions(regex=re.escape(text)), 0) == (text, True)
    written, ended = draw(name, GenerateOptions(schema={"const": text}), 0)
    assert ended and json.loads(written) == text


def test_a_choice_may_go_on_where_another_ends() -> None:
    found = {
        draw("byte-level", GenerateOptions(choices=["red", "red square", "1", "10"]), seed)[0] for seed in range(60)
    }
    assert found == {"red", "red square", "1", "10"}


def test_a_form_that_may_be_empty() -> None:
    found = {draw("byte-level", GenerateOptions(regex="a?"), seed)[0] for seed in range(40)}
    assert found == {"", "a"}


def test_no_form_begins_with_a_space_and_any_with_a_line_end() -> None:
    for seed in range(20):
        text, ended = draw("byte-level", GenerateOptions(regex=r"\s*[ab]"), seed, most=2000)
        assert ended and re.fullmatch(r"\s*[ab]", text) and not text.startswith(" ")
    assert draw("byte-level", GenerateOptions(regex=r"\nab"), 0)[0] == "\nab"


# --- on engines --------------------------------------------------------------------------------------------

THING = {"type": "object", "additionalProperties": False}
SHORT = {"type": "string", "maxLength": 6}
SCHEMAS: dict[str, Any] = {
    "flags": {
        **THING,
        "properties": {"cat": {"type": "boolean"}, "dog": {"type": "boolean"}},
        "required": ["cat", "dog"],
    },
    "a label": {**THING, "properties": {"label": {"enum": ["cat", "dog", "none"]}}, "required": ["label"]},
    "numbers": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 1000}, "maxItems": 4},
    "a box": {
        "type": "array",
        "items": {"type": "integer", "minimum": 0, "maximum": 999},
        "minItems": 4,
        "maxItems": 4,
    },
    "things": {
        "type": "array",
        "maxItems": 2,
        "items": {**THING, "properties": {"name": SHORT, "n": {"type": "integer", "minimum": 0, "maximum": 9}}},
    },
    "nested": {
        **THING,
        "properties": {"scene": {**THING, "properties": {"light": {"enum": ["day", "night"]}, "text": SHORT}}},
        "required": ["scene"],
    },
    "either": {"anyOf": [{"type": "null"}, SHORT, {"type": "integer", "minimum": -5, "maximum": 5}]},
    "references": {
        "$defs": {"point": {"type": "array", "items": {"enum": [0, 1, 2]}, "minItems": 2, "maxItems": 2}},
        **THING,
        "properties": {"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}},
        "required": ["to"],
    },
    "a date": {**THING, "properties": {"day": {"type": "string", "format": "date"}}, "required": ["day"]},
    "a pattern": {
        **THING,
        "properties": {"id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}},
        "required": ["id"],
    },
}


def check_answers(pipeline: Pipeline, count: int) -> None:
    """`count` answers under the schemas in turns, sampled at temperature 1, all parse and validate."""
    seen = set()
    for number in range(count):
        schema = list(SCHEMAS.values())[number % len(SCHEMAS)]
        options = GenerateOptions(max_tokens=400, temperature=1.0, seed=number, schema=schema)
        answer = pipeline.answer([], QUESTION, options)
        assert answer.finish_reason == "stop", answer.text
        Draft202012Validator(schema).validate(json.loads(answer.text))
        seen.add(answer.text)
    assert len(seen) > count / 3  # some have three values


@pytest.fixture(scope="module", params=["onnxruntime", "eager"])
def pipeline(request: pytest.FixtureRequest, tiny_bundle: Path) -> Iterator[Pipeline]:
    bundle = open_bundle(tiny_bundle)
    runtime = open_runtime(bundle, request.param, threads=1)
    yield Pipeline(bundle, runtime)
    runtime.close()


def check_engine(pipeline: Pipeline) -> None:
    """One form of each kind, greedy and sampled, with everything else that chooses tokens."""
    check_answers(pipeline, 10)
    for options in ({}, {"temperature": 1.5, "top_k": 3, "top_p": 0.5}, {"repetition_penalty": 1.7}):
        words = ["yes", "no", "not here"]
        assert pipeline.answer([], QUESTION, GenerateOptions(choices=words, **options)).text in words
        stream = pipeline.ask([], QUESTION, GenerateOptions(regex=r"[A-F]\d{2}: (left|right)", **options))
        assert re.fullmatch(r"[A-F]\d{2}: (left|right)", "".join(stream)) and "".join(stream) == ""
        assert stream.answer.finish_reason == "stop"


def test_forms(pipeline: Pipeline) -> None:
    check_engine(pipeline)


def test_forms_on_llama(gguf_bundle: Any) -> None:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    bundle = gguf_bundle("fp32")
    runtime = open_runtime(bundle, "llama.cpp", threads=1)
    check_engine(Pipeline(bundle, runtime))
    runtime.close()


def test_forms_on_coreml(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed (pip install '.[coreml]')")
    options = ExportOptions(str(tiny_checkpoint), tmp_path / "out", targets=("coreml",), quantize="fp16", gate=False)
    bundle = open_bundle(export_model(options).folder)
    runtime = open_runtime(bundle, "coreml")
    pipeline = Pipeline(bundle, runtime)
    options = GenerateOptions(choices=("yes", "no", "maybe"), scores=True)
    answer = pipeline.answer([], QUESTION, options)
    assert answer.text in ("yes", "no", "maybe") and answer.scores is not None
    schema = SCHEMAS["a label"]
    json_answer = pipeline.answer([], QUESTION, GenerateOptions(schema=schema, temperature=1.0)).text
    Draft202012Validator(schema).validate(json.loads(json_answer))
    runtime.close()


@pytest.mark.heavy
def test_a_thousand_answers(fast: Pipeline) -> None:
    check_answers(fast, 1000)


def test_some_answers(fast: Pipeline) -> None:
    check_answers(fast, 50)


def test_an_answer_that_is_cut_says_so(fast: Pipeline) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 50}
    answer = fast.answer([], QUESTION, GenerateOptions(max_tokens=9, schema=schema))
    assert answer.finish_reason == "length" and len(answer.ids) == 9 and answer.text.startswith("[")


def test_a_form_ends_an_answer_without_another_token(fast: Pipeline) -> None:
    """Nothing is computed for a stop token that alone may follow."""
    answer = fast.answer([], QUESTION, GenerateOptions(regex="[ab]{4}"))
    assert fast.prompter.decode(answer.ids).lstrip(" ") == answer.text and len(answer.text) == 4
    assert fast.runtime.decoder.position == answer.timings.prompt_tokens + len(answer.ids) - 1


def test_the_form_comes_before_what_the_sampler_keeps(fast: Pipeline) -> None:
    """top_k and top_p count what may follow, as though the model had no other tokens."""
    plain = fast.answer([], QUESTION, GenerateOptions(regex="[a-z]{12}"))
    narrow = GenerateOptions(regex="[a-z]{12}", temperature=3.0, top_k=1)
    assert fast.answer([], QUESTION, narrow).ids == plain.ids
    assert fast.answer([], QUESTION, GenerateOptions(regex="[a-z]{12}", temperature=3.0)).ids != plain.ids


def test_a_form_that_becomes_too_complex_is_one_sentence(fast: Pipeline) -> None:
    """Known at some token only."""
    hard = "".join(f"(.*[a-m].{{{count}}}x|.*[n-z].{{{count + 1}}}y)*" for count in range(5, 25))
    options = GenerateOptions(regex="[ab]{30}" + hard, max_tokens=200, temperature=1.0)
    stream = fast.ask([], QUESTION, options)
    with pytest.raises(EdgeVLMError) as caught:
        list(stream)
    said = str(caught.value)
    assert said.startswith("The regex cannot be used (") and "\n" not in said and len(said) < 400
    assert fast.answer([], QUESTION, GenerateOptions(max_tokens=3)).text is not None


def test_streams_of_several_forms_at_once(fast: Pipeline) -> None:
    streams = [fast.ask([], QUESTION, GenerateOptions(regex=f"{letter}[0-9]{{9}}")) for letter in "abc"]
    started = [next(iter(stream)) for stream in streams]
    texts = [first + "".join(stream) for first, stream in zip(started, streams, strict=True)]
    assert all(re.fullmatch(f"{letter}[0-9]{{9}}", text) for letter, text in zip("abc", texts, strict=True))


# --- stop strings ------------------------------------------------------------------------------------------


def test_stop_strings_end_an_answer_where_its_text_has_them(pipeline: Pipeline) -> None:
    free = pipeline.answer([], QUESTION, GenerateOptions(max_tokens=60, ignore_stop=True))
    for start, end in ((5, 7), (11, 17), (20, 21), (30, 42)):
        stop = free.text[start:end]
        stream = pipeline.ask([], QUESTION, GenerateOptions(max_tokens=60, ignore_stop=True, stop=stop))
        pieces = list(stream)
        assert "".join(pieces) == stream.answer.text == free.text[: free.text.index(stop)] and all(pieces)
        assert stream.answer.finish_reason == "stop"
        assert stream.answer.ids == free.ids[: len(stream.answer.ids)]
        held = stream.answer.timings.prompt_tokens + len(stream.answer.ids) - 1
        assert pipeline.runtime.decoder.position == held, "also where it ends within a draft"
        assert stop in pipeline.prompter.decode(stream.answer.ids) and len(stream.answer.ids) < 60
    other = pipeline.answer([], QUESTION, GenerateOptions(max_tokens=60, ignore_stop=True, stop=["never", "said"]))
    assert other.text == free.text and other.finish_reason == "length"


def test_a_stop_string_inside_of_a_form(fast: Pipeline) -> None:
    answer = fast.answer([], QUESTION, GenerateOptions(regex="[a-z]{3}; [a-z]{3}", stop=";"))
    assert re.fullmatch("[a-z]{3}", answer.text) and answer.finish_reason == "stop"
