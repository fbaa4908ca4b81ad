"""A request for a chat completion -> what is asked of the model.

A field that changes an answer is done as it says, or refused by its name; so is one that is not known. None of a
request's pictures is ever left out.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.generate.chat import AskOptions
from edgevlm.io.json import parse_json
from edgevlm.serve.closing import closed
from edgevlm.serve.messages import conversation_of
from edgevlm.serve.options import ServeOptions
from edgevlm.serve.pictures import Fetch
from edgevlm.serve.refusals import Refusal, wrong
from edgevlm.serve.said import Chain, chain_of

# Fields that cannot change an answer here.
IGNORED = frozenset({
    "user", "metadata", "service_tier", "store", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "cache_prompt", "id_slot", "slot_id", "timings_per_token", "return_progress", "keep_alive", "parallel_tool_calls",
})  # fmt: skip

# Fields that say nothing where they have one of these values. One that is null says nothing, either.
DEFAULTS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repeat_penalty": (1,),
    "min_p": (0,),
    "typical_p": (1,),
    "min_tokens": (0,),
    "mirostat": (0,),
    "grammar": ("",),
    "echo": (False,),
    "ignore_eos": (False,),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}
WHY = {
    "n": "ask several times",
    "logprobs": "leave it out",
    "tools": "the model has no tool template",
    "tool_choice": "the model has no tool template",
    "functions": "the model has no tool template",
    "repeat_penalty": "repetition_penalty, over the whole prompt, is done",
    "grammar": "response_format is done",
    "continue_final_message": "an answer begins anew",
}

# Fields of the request -> of the options.
SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "repetition_penalty": "repetition_penalty",
    "stop": "stop",
}
FORMS = ("text", "json_object", "json_schema")


@dataclass(frozen=True, eq=False)
class Asked:
    """A request, read."""

    conversation: list[dict[str, Any]]  # as `Pipeline.ask` takes it; each picture is a `Kept`
    chain: Chain  # of the conversation
    options: AskOptions
    stream: bool
    include_usage: bool


def read_request(data: bytes, names: Collection[str], switch: bool, options: ServeOptions, fetch: Fetch) -> Asked:
    """data: the body. names: what the model is called. switch: whether it can be told to think. Raises Refusal."""
    try:
        body = parse_json(data, options.max_body)
    except ValueError as error:
        raise Refusal(400, f"The request is no valid JSON: {str(error)[:200]}.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise Refusal(
            400, "The request is no JSON object: send {'model': ..., 'messages': [...]}.", code="invalid_json"
        )
    given = {name: value for name, value in body.items() if value is not None and name not in IGNORED}
    _check_model(given.pop("model", None), names)
    stream, include_usage = _streaming(given)
    asked: dict[str, Any] = {"max_tokens": _longest(given, options.max_tokens), "max_tiles": options.max_tiles}
    for field, name in SAMPLING.items():
        if field in given:
            asked[name] = _checked(field, name, given.pop(field))
    if asked.get("temperature") and "seed" not in asked:
        asked["seed"] = secrets.randbits(32)
    asked["schema"] = _schema(given.pop("response_format", None))
    asked["thinking"] = _thinking(given.pop("chat_template_kwargs", None), switch)
    messages = given.pop("messages", None)
    for field, value in given.items():
        _check_default(field, value)
    conversation = conversation_of(messages, options, fetch)
    return Asked(conversation, chain_of(conversation), AskOptions(**asked), stream, include_usage)


def _check_model(model: Any, names: Collection[str]) -> None:
    if model is None:
        return
    if not isinstance(model, str):
        raise wrong("model", f"model is {_a(model)}: give a text.")
    if model not in names:
        raise Refusal(
            404,
            f"This server has no model '{model[:100]}': ask for {' or '.join(map(repr, names))}, or start it with "
            "--alias NAME.",
            param="model",
            code="model_not_found",
        )


def _streaming(given: dict[str, Any]) -> tuple[bool, bool]:
    stream, options = given.pop("stream", False), given.pop("stream_options", None)
    if not isinstance(stream, bool):
        raise wrong("stream", f"stream is {_a(stream)}: give true or false.")
    if options is None:
        return stream, False
    if not isinstance(options, dict):
        raise wrong("stream_options", f"stream_options is {_a(options)}: give an object.")
    if not stream:
        raise wrong("stream_options", "stream_options is of an answer that streams: leave it out, or set stream.")
    usage = options.get("include_usage")
    if usage is not None and not isinstance(usage, bool):
        raise wrong("stream_options.include_usage", f"include_usage is {_a(usage)}: give true or false.")
    if more := sorted(options.keys() - {"include_usage", "include_obfuscation"}):
        raise _unknown(f"stream_options.{more[0]}")
    return stream, bool(usage)


def _longest(given: dict[str, Any], default: int) -> int:
    found = {name: given.pop(name) for name in ("max_tokens", "max_completion_tokens") if name in given}
    for name, value in found.items():
        _checked(name, "max_tokens", value)
    if len(set(found.values())) > 1:
        raise wrong("max_tokens", "max_tokens and max_completion_tokens differ: give one of them.")
    return next(iter(found.values()), default)


def _checked(field: str, name: str, value: Any) -> Any:
    """The value of one option, refused by its own rules."""
    value = tuple(value) if field == "stop" and isinstance(value, list) else value
    try:
        return getattr(AskOptions(**{name: value}), name)
    except EdgeVLMError as error:
        raise wrong(field, str(error), "invalid_value") from None


def _schema(form: Any) -> Any:
    param = "response_format"
    if form is None:
        return None
    if not isinstance(form, dict):
        raise wrong(param, f"{param} is {_a(form)}: give an object with a type.")
    kind = form.get("type")
    if not isinstance(kind, str) or kind not in FORMS:
        raise wrong(f"{param}.type", f"{param}.type is none that is done: give {', '.join(FORMS)}.")
    inner, schema = form.get("json_schema"), form.get("schema")  # the latter as in llama.cpp
    if kind == "text":
        if inner is not None or schema is not None:
            raise wrong(param, f"{param} asks for text and has a schema: give the type json_schema.")
        return None
    if kind == "json_schema":
        if not isinstance(inner, dict):
            raise wrong(f"{param}.json_schema", "A json_schema is an object with a schema: give one.")
        schema, where = inner.get("schema"), f"{param}.json_schema.schema"
        if schema is None:
            raise wrong(where, "The schema is missing: give a JSON Schema.")
        if inner.get("strict") is True:
            schema = closed(schema)
    else:
        schema, where = {"type": "object"} if schema is None else schema, f"{param}.schema"
    if not isinstance(schema, Mapping):
        raise wrong(where, f"The schema is {_a(schema)}: give an object.")
    return _checked(where, "schema", schema)


def _thinking(settings: Any, switch: bool) -> bool | None:
    field = "chat_template_kwargs"
    if settings is None:
        return None
    if not isinstance(settings, dict):
        raise wrong(field, f"{field} is {_a(settings)}: give an object.")
    if more := sorted(settings.keys() - {"enable_thinking"}):
        raise _unknown(f"{field}.{more[0]}")
    thinking = settings.get("enable_thinking")
    if thinking is not None and not isinstance(thinking, bool):
        raise wrong(f"{field}.enable_thinking", f"enable_thinking is {_a(thinking)}: give true or false.")
    if thinking and not switch:
        raise wrong(f"{field}.enable_thinking", "This model has no switch for thinking: leave it out.", "unsupported")
    return thinking if switch else None


def _check_default(field: str, value: Any) -> None:
    if field not in DEFAULTS:
        raise _unknown(field)
    if not any(type(value) is type(usual) or _numbers(value, usual) for usual in DEFAULTS[field] if value == usual):
        why = f": {WHY[field]}" if field in WHY else ", only its default: leave it out"
        raise wrong(field, f"The field '{field}' is not done here{why}.", "unsupported")


def _numbers(value: Any, usual: Any) -> bool:
    return all(type(each) in (int, float) for each in (value, usual))


def _unknown(field: str) -> Refusal:
    return wrong(
        field[:200], f"The field '{field[:100]}' is not known here, and may change an answer: leave it out.", "unknown"
    )


def _a(value: object) -> str:
    return f"of type {type(value).__name__}"
