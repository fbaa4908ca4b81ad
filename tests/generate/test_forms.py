"""Forms that cannot be asked for: one sentence each, soon, and before the engine has any work."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from edgevlm.bundle.manifest import open_bundle
from edgevlm.generate.loop import GenerateOptions, Pipeline
from edgevlm.io import limits
from edgevlm.runtimes import open_runtime


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def in_itself() -> dict[str, Any]:
    schema: dict[str, Any] = {}
    schema["properties"] = schema
    return schema


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"schema": 5}, "schema is of type int: give a dict or the text of a JSON object"),
    ({"schema": ["object"]}, "schema is of type list"),
    ({"schema": "[1]"}, "The schema is a JSON list"),
    ({"schema": "true"}, "The schema is a JSON bool"),
    ({"schema": ""}, "The schema cannot be read (Expecting value"),
    ({"schema": '{"type": "object"'}, "The schema cannot be read ("),
    ({"schema": '{"a": 1, "a": 2}'}, "the key 'a' occurs twice"),
    ({"schema": nested(limits.JSON_DEPTH)}, "nested more than 64 deep"),
    ({"schema": "[" * 100_000}, "it holds too many objects and lists"),
    ({"schema": in_itself()}, "Circular reference"),
    ({"schema": {"enum": ["x" * limits.SCHEMA]}}, f"it has over {limits.SCHEMA} bytes"),
    ({"schema": {"const": float("nan")}}, "not JSON compliant"),
    ({"schema": {"const": b"x"}}, "it holds a bytes, which is no JSON"),
    ({"schema": {"const": "\ud800"}}, "half of a surrogate pair"),
    ({"schema": '{"const": "\ud800"}'}, "The schema cannot be read ("),
    ({"schema": {"type": "integer", "multipleOf": 1000003}}, "multiples of 1000003, expected up to 10000"),
    ({"schema": {"items": [{"multipleOf": 1.000001}]}}, "multiples of 1.000001"),
    ({"choices": []}, "There are 0 choices: give 1 to 10000 texts."),
    ({"choices": [str(n) for n in range(10_001)]}, "There are 10001 choices"),
    ({"choices": "yes"}, "choices is 'yes': give a tuple, each a text, or None."),
    ({"choices": [1, 2]}, "choices is of type list: give a tuple, each a text, or None."),
    ({"choices": ["a", ""]}, "A choice is empty"),
    ({"choices": ["a", "a"]}, "The choice 'a' is given twice"),
    ({"choices": [" a"]}, "The choice ' a' begins or ends with white space"),
    ({"choices": ["a\n"]}, "The choice 'a\\n' begins or ends with white space"),
    ({"choices": ["a" * 1025]}, "A choice has 1025 characters, at most 1024"),
    ({"choices": ["\udc00"]}, "A choice holds a lone surrogate"),
    ({"scores": True}, "scores are of choices"),
    ({"scores": 1, "choices": ["a"]}, "scores is 1: give True or False."),
    ({"regex": ""}, "The regex is empty"),
    ({"regex": 5}, "regex is 5: give a text, or None."),
    ({"regex": "a" * 10_000}, "The regex has 10000 characters"),
    ({"regex": "\ud800"}, "The regex holds a lone surrogate"),
    ({"stop": ""}, "A stop string is empty"),
    ({"stop": ["a", ""]}, "A stop string is empty"),
    ({"stop": 5}, "stop is 5: give a tuple, each a text."),
    ({"stop": [None]}, "stop is of type list"),
    ({"stop": ["a" * 257]}, "A stop string has 257 characters"),
    ({"stop": [str(n) for n in range(17)]}, "There are 17 stop strings"),
    ({"choices": ["a"], "regex": "a"}, "An answer has one form, and choices and regex are given"),
    ({"schema": {}, "choices": ["a"], "regex": "a"}, "schema and choices and regex are given"),
    ({"regex": "a", "ignore_stop": True}, "ignore_stop goes on where regex ends an answer"),
]


@pytest.mark.parametrize(("options", "sentence"), OPTIONS, ids=[sentence[:40] for _, sentence in OPTIONS])
def test_options(options: dict[str, Any], sentence: str) -> None:
    refused(lambda: GenerateOptions(**options), sentence)


class Untouchable:
    """An engine that nobody may call."""

    name = device = "none"

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the engine was asked for {name}")


@pytest.fixture(scope="module")
def ask(tiny_bundle: Path) -> Callable[..., object]:
    from edgevlm.runtimes.base import Runtime

    pipeline = Pipeline(open_bundle(tiny_bundle), Runtime(Untouchable(), Untouchable()))  # type: ignore[arg-type]
    return lambda **options: pipeline.ask([], "What is it?", GenerateOptions(**options))


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"choices": ["red", "blue", "red square"], "scores": True},
        "The tokens of the choice 'red' begin those of 'red sq",
    ),
    ({"regex": "("}, "The regex cannot be used (unclosed group)"),
    ({"regex": "a{2}{3"}, "The regex cannot be used ("),
    ({"regex": "(?=a)b"}, "look-around, including look-ahead and look-behind, is not supported"),
    ({"regex": r"(a)\1"}, "backreferences are not supported"),
    ({"regex": r"\bfoo"}, "lookarounds not supported yet"),
    ({"regex": " a"}, "The regex cannot be used (none of the model's tokens may follow)"),
    ({"regex": "a" + r"[^\s\S]"}, "The regex cannot be used"),
    ({"regex": "(a{1000}){1000}"}, "fuel exhausted"),
    ({"regex": "((a{99}){99}){99}"}, "The regex cannot be used ("),
    ({"regex": "(?:a?){3000}a{3000}"}, "fuel exhausted"),
    ({"regex": "(" * 4000 + ")" * 4000}, "The regex cannot be used ("),
    ({"schema": {"type": "strin"}}, "Invalid type: strin"),
    ({"schema": {"properties": []}}, "properties must be an object"),
    ({"schema": {"type": "array", "uniqueItems": True}}, 'Unimplemented keys: ["uniqueItems"]'),
    ({"schema": {"not": {"type": "string"}}}, 'Unimplemented keys: ["not"]'),
    ({"schema": {"x-guidance": {"lenient": True}, "not": {}}}, 'Unimplemented keys: ["not"]'),
    ({"schema": {"type": "string", "format": "phone"}}, "Unknown format: phone"),
    ({"schema": {"type": "string", "pattern": "^(?=a)"}}, "look-around"),
    ({"schema": {"type": "integer", "minimum": 5, "maximum": 3}}, "minimum (5) is greater than maximum (3)"),
    ({"schema": {"enum": []}}, "The schema cannot be used ("),
    (
        {"schema": {"type": "object", "required": ["a"], "properties": {"a": False}}},
        "required property 'a' is unsatisfiable",
    ),
    (
        {"schema": {"$ref": "https://example.com/schema.json"}},
        "The schema cannot be used (Resource 'https://example.com",
    ),
    ({"schema": {"$ref": "file:///etc/passwd"}}, "The schema cannot be used (Resource 'file:///etc/passwd'"),
    ({"schema": {"$ref": "#/$defs/none"}}, "Pointer '/$defs/none' does not exist"),
    ({"schema": {"$ref": "#"}}, "No text is of the form that the schema asks for"),
    ({"schema": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}}, "No text"),
    ({"schema": {"allOf": [{"$ref": "#"}]}}, "No text is of the form"),
    (
        {"schema": {"allOf": [{"anyOf": [{"properties": {f"{i}{j}": {}}} for j in range(4)]} for i in range(10)]}},
        "schema too large",
    ),
]


@pytest.mark.parametrize(("options", "sentence"), REFUSED, ids=[str(options)[:50] for options, _ in REFUSED])
def test_before_the_engine_works(ask: Callable[..., object], options: dict[str, Any], sentence: str) -> None:
    refused(lambda: ask(**options), sentence)


LARGE: list[dict[str, Any]] = [
    {"choices": [f"number {n}" for n in range(10_000)]},
    {"schema": {"enum": [f"v{n}" for n in range(5000)]}},
    {"schema": {"type": "array", "items": {"type": "integer"}, "maxItems": 10**9}},
    {"schema": {"type": "string", "maxLength": 10**9}},
    {"schema": nested(60)},
    {"schema": {"properties": {f"k{n}": {"type": "string"} for n in range(300)}}},
    {"regex": r"\p{L}{1000}"},
    {"regex": "(a|b)*a(a|b){30}"},
]


@pytest.mark.parametrize("options", LARGE, ids=[str(options)[:50] for options in LARGE])
def test_large_ones_are_taken(ask: Callable[..., object], options: dict[str, Any]) -> None:
    assert ask(**options) is not None


def test_thoughts_have_no_form(ask: Callable[..., object], tiny_bundle: Path) -> None:
    runtime = open_runtime(open_bundle(tiny_bundle), "eager")
    pipeline = Pipeline(open_bundle(tiny_bundle), runtime)
    form = pipeline._forms
    refused(
        lambda: form.start(GenerateOptions(regex="a"), runtime.decoder, 10, True),
        "Thoughts have no form: leave out thinking, or the schema, choices or regex.",
    )


def test_without_the_library(ask: Callable[..., object], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    pipeline = Pipeline(open_bundle(tiny_bundle), open_runtime(open_bundle(tiny_bundle), "eager"))
    refused(
        lambda: pipeline.ask([], "Hi", GenerateOptions(choices=["a"])),
        "Answers of a given form need llguidance, which is not installed: run pip install '.[constrain]' in EdgeVLM's",
    )
    assert pipeline.answer([], "Hi", GenerateOptions(max_tokens=3, stop="x")).text is not None


def test_a_schema_is_kept_as_text_and_options_stay_values() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    options = GenerateOptions(schema=schema)
    assert options == GenerateOptions(schema=json.dumps(schema)) and hash(options) == hash(options)
    assert options.schema == json.dumps(schema), "properties come in the order in which they are written"
    assert GenerateOptions(stop="ab").stop == GenerateOptions(stop=["ab"]).stop == ("ab",)
