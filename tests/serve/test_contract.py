"""What clients send and are answered: OpenAI's own client, and what other programs send."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import Running, ask, data_url, error_of, image, picture, serving

from edgevlm.api import Model, load
from edgevlm.generate.chat import AskOptions
from edgevlm.generate.given import Kept
from edgevlm.serve.answers import Completion
from edgevlm.serve.closing import closed

ANSWER = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["name", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(tiny_bundle: Path) -> Iterator[Running]:
    with serving(tiny_bundle, aliases=("eyes",), max_pictures=4) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[Model]:
    with load(tiny_bundle, threads=1) as made:
        yield made


# --- the answer ------------------------------------------------------------------------------------------


def test_the_answer_is_the_models(client: openai.OpenAI, model: Model) -> None:
    content: Any = [{"type": "text", "text": "What is this?"}, image()]
    made = client.chat.completions.create(
        model="eyes", messages=[{"role": "user", "content": content}], max_completion_tokens=8
    )
    items = [{"type": "text", "text": "What is this?"}, {"type": "image", "image": picture()}]
    answer = model.answer([{"role": "user", "content": items}], (), AskOptions(max_tokens=8))
    assert made.choices[0].message.content == answer.text and made.choices[0].finish_reason == answer.finish_reason
    assert made.choices[0].message.role == "assistant" and made.object == "chat.completion"
    assert made.id.startswith("chatcmpl-") and made.model == client.models.list().data[0].id
    assert made.usage is not None and made.usage.prompt_tokens_details is not None
    timings = answer.timings
    assert made.usage.prompt_tokens == timings.prompt_tokens and made.usage.completion_tokens == len(answer.ids) == 8
    assert made.usage.total_tokens == timings.prompt_tokens + 8
    assert made.usage.prompt_tokens_details.image_tokens == timings.image_tokens > 0  # type: ignore[attr-defined]


def test_pieces_as_they_come(client: openai.OpenAI, model: Model) -> None:
    content: Any = [image(), {"type": "text", "text": "What is this?"}]
    chunks = list(
        client.chat.completions.create(
            model="eyes", messages=[{"role": "user", "content": content}], max_tokens=30, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    first, *middle, last, counted = chunks
    answer = model.answer("What is this?", [picture()], AskOptions(max_tokens=30))
    assert first.choices[0].delta.role == "assistant" and first.choices[0].delta.content == ""
    assert "".join(chunk.choices[0].delta.content or "" for chunk in middle) == answer.text and len(middle) > 3
    assert last.choices[0].finish_reason == "length" and last.choices[0].delta.content is None
    assert {chunk.id for chunk in chunks} == {first.id} and all(chunk.usage is None for chunk in chunks[:-1])
    assert counted.choices == [] and counted.usage is not None and counted.usage.completion_tokens == 30
    extra: Any = last.model_extra
    assert extra["edgevlm"] == {"boxes": [], "points": []} and extra["timings"]["predicted_n"] == 30


def test_the_events_as_they_are_sent(server: Running) -> None:
    with server.client.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as response:
        text = response.read().decode()
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""] and all(event.startswith("data: {") for event in events[:-2])
    assert "usage" not in json.loads(events[0][6:])  # not asked for


def test_an_event_is_one_line_whatever_a_client_calls_a_line() -> None:
    text = "a\n\r\x0b\x0c\x1c\x85\u2028\u2029 ü 猫 😀"
    (line,) = Completion("m").piece(text).decode().strip("\n").splitlines()
    assert json.loads(line[6:])["choices"][0]["delta"]["content"] == text


def test_timings_by_llama_cpps_names(server: Running) -> None:
    server.post(ask("Something else entirely"))
    first, second = (server.post(ask([image(picture(7)), {"type": "text", "text": "Q"}])).json() for _ in range(2))
    timings = first["timings"]
    assert set(timings) == {
        "preprocess_ms", "encode_ms", "image_n", "cache_n", "prompt_n", "prompt_ms", "prompt_per_second",
        "predicted_n", "predicted_ms", "predicted_per_second",
    }  # fmt: skip
    assert timings["cache_n"] + timings["prompt_n"] == first["usage"]["prompt_tokens"] and timings["predicted_n"] == 6
    assert all(value >= 0 and math.isfinite(value) for value in timings.values()) and timings["prompt_ms"] > 0
    prompt = second["usage"]["prompt_tokens"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == second["timings"]["cache_n"] == prompt - 1


def test_a_schema(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "thing", "strict": True, "schema": ANSWER}}
    asked: Any = [{"role": "user", "content": [image(), {"type": "text", "text": "Name and count."}]}]
    made = client.chat.completions.create(model="eyes", messages=asked, response_format=form, max_tokens=200)
    jsonschema.validate(json.loads(made.choices[0].message.content or ""), ANSWER)
    assert made.choices[0].finish_reason == "stop"
    parts = client.chat.completions.create(
        model="eyes", messages=asked, response_format=form, max_tokens=200, stream=True
    )
    assert "".join(part.choices[0].delta.content or "" for part in parts) == made.choices[0].message.content


def test_a_strict_schema_has_no_other_properties() -> None:
    """What jsonschema says of instances, before and after."""
    inner = {"type": "object", "properties": {"n": {"type": "integer"}}}
    schema = {
        "type": "object",
        "properties": {"a": inner, "b": {"type": "array", "items": inner}, "c": {"anyOf": [inner, {"type": "null"}]},
                       "d": {"$ref": "#/$defs/d"}, "properties": {"type": "string"}},
        "$defs": {"d": inner},
    }  # fmt: skip
    made = closed(schema)
    whole: Any = {"a": {"n": 1}, "b": [{"n": 2}], "c": {"n": 3}, "d": {"n": 4}, "properties": "x"}
    jsonschema.validate(whole, made)
    for more in ({"z": 1}, {"a": {"z": 1}}, {"b": [{"n": 1, "z": 1}]}, {"c": {"z": 1}}, {"d": {"z": 1}}):
        jsonschema.validate(whole | more, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(whole | more, made)
    for own in ({"additionalProperties": True}, {"patternProperties": {"^x": {}}}, {"allOf": [inner, inner]}):
        assert closed({"type": "object", "properties": {}, **own}) == {"type": "object", "properties": {}, **own}


def test_objects_of_any_form(server: Running) -> None:
    for form in ({"type": "json_object"}, {"type": "json_object", "schema": ANSWER}):
        made = server.post(ask(max_tokens=300, temperature=1.0, seed=3, response_format=form)).json()["choices"][0]
        text = made["message"]["content"]
        assert text.startswith("{") and (made["finish_reason"] == "length" or isinstance(json.loads(text), dict))
    assert server.post(ask(response_format={"type": "text"})).status_code == 200


def test_sampling(server: Running, model: Model) -> None:
    def text(**more: Any) -> str:
        return str(server.post(ask(max_tokens=12, **more)).json()["choices"][0]["message"]["content"])

    greedy = text()
    assert greedy == text(temperature=0) == model.answer("What is this?", (), AskOptions(max_tokens=12)).text
    assert text(temperature=1.5, seed=4) == text(temperature=1.5, seed=4)
    assert len({text(temperature=1.5) for _ in range(8)}) > 1  # a seed of its own for each
    options = AskOptions(max_tokens=12, temperature=1.5, seed=4, top_p=0.9, top_k=50, repetition_penalty=1.1)
    asked = model.answer("What is this?", (), options).text
    assert asked == text(temperature=1.5, seed=4, top_p=0.9, top_k=50, repetition_penalty=1.1)
    stop = greedy[3:5]
    for form in (stop, [stop], ["never said", stop]):
        assert text(stop=form) == greedy[: greedy.index(stop)]


def test_pictures_in_any_order_and_form(server: Running, model: Model) -> None:
    a, b, c = (picture(seed, 64 + 16 * seed, kind) for seed, kind in enumerate(("PNG", "JPEG", "WEBP")))
    parts = [image(a), {"type": "text", "text": "One."}, {"type": "image_url", "image_url": data_url(b, "jpeg")}]
    parts += [{"type": "text", "text": "Two."}, image(c, detail="low"), {"type": "text", "text": "Three?"}]
    made = server.post(ask(parts)).json()
    items = [{"type": "image", "image": a}, {"type": "text", "text": "One."}, {"type": "image", "image": b}]
    items += [{"type": "text", "text": "Two."}, {"type": "image", "image": Kept(c, 1)}]
    items.append({"type": "text", "text": "Three?"})
    answer = model.answer([{"role": "user", "content": items}], (), AskOptions(max_tokens=6))
    assert made["choices"][0]["message"]["content"] == answer.text
    assert made["usage"]["prompt_tokens"] == answer.timings.prompt_tokens
    assert made["usage"]["prompt_tokens_details"]["image_tokens"] == answer.timings.image_tokens


def test_detail_low_is_one_tile(server: Running) -> None:
    wide = picture(1, 200)
    counts = [
        server.post(ask([image(wide, **more)])).json()["usage"]["prompt_tokens_details"]["image_tokens"]
        for more in ({}, {"detail": "auto"}, {"detail": "high"}, {"detail": "low"}, {"detail": None})
    ]
    assert counts[0] == counts[1] == counts[2] == counts[4] > counts[3] == 16


def test_roles(server: Running, model: Model) -> None:
    for role in ("system", "developer"):
        messages = [{"role": role, "content": "Be brief."}, {"role": "user", "content": "What?", "tool_calls": []}]
        made = server.post({"messages": messages, "max_tokens": 6}).json()
        wanted = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}]
        assert made["choices"][0]["message"]["content"] == model.answer(wanted, (), AskOptions(max_tokens=6)).text


# --- several turns ---------------------------------------------------------------------------------------


def talk(server: Running, first: Any, turns: int, **more: Any) -> list[bool]:
    """A conversation, each answer sent back; whether each later turn found all that was said before in the cache."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": first}]
    found, read, held = list[bool](), 0, 0
    for turn in range(turns):
        made = server.post({"messages": messages, "max_tokens": 60, **more}).json()
        usage = made["usage"]
        if turn:
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            assert cached >= read
            found.append(cached >= held)
        read, held = usage["prompt_tokens"] - 1, usage["prompt_tokens"] + usage["completion_tokens"] - 1
        messages += [made["choices"][0]["message"], {"role": "user", "content": f"And {turn}?"}]
    return found


def test_a_conversation_that_is_sent_back_is_held(tiny_bundle: Path) -> None:
    """In the answer's tokens, too, where it begins with the blank that this model's format writes: here by chance."""
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": ANSWER}}
    with serving(tiny_bundle) as server:
        content = [image(), {"type": "text", "text": "What?"}]
        found = [
            held
            for seed in range(16)
            for held in talk(server, content, 3, response_format=form, temperature=2.0, seed=seed)
        ]
    assert True in found and len(found) == 32


def test_conversations_find_their_session(tiny_bundle: Path) -> None:
    with serving(tiny_bundle, parallel=2) as server:
        talks = [[{"role": "user", "content": [image(picture(k)), {"type": "text", "text": "?"}]}] for k in range(2)]
        read = [0, 0]
        for turn in range(4):
            for number, messages in enumerate(talks):
                made = server.post({"messages": messages, "max_tokens": 8}).json()
                usage = made["usage"]
                assert usage["prompt_tokens_details"]["cached_tokens"] >= read[number]
                read[number] = usage["prompt_tokens"] - 1
                messages += [made["choices"][0]["message"], {"role": "user", "content": f"{turn}?"}]


# --- fields that are not done ----------------------------------------------------------------------------

HARMLESS: list[dict[str, Any]] = [
    {"user": "me", "metadata": {"a": "b"}, "service_tier": "auto", "store": False, "parallel_tool_calls": False},
    {"n": 1, "logprobs": False, "top_logprobs": None, "tools": [], "tool_choice": "none", "logit_bias": {}},
    {"presence_penalty": 0, "frequency_penalty": 0.0, "reasoning_effort": "none", "modalities": ["text"], "stop": None},
    {"cache_prompt": True, "id_slot": 0, "timings_per_token": True, "min_p": 0, "repeat_penalty": 1.0, "seed": None},
    {"chat_template_kwargs": {"enable_thinking": False}, "stream_options": None, "response_format": None},
    {"chat_template_kwargs": {}, "max_tokens": 6, "max_completion_tokens": 6, "temperature": 0, "top_p": 1},
]


@pytest.mark.parametrize("more", HARMLESS)
def test_harmless_fields(server: Running, more: dict[str, Any]) -> None:
    plain = server.post(ask()).json()["choices"][0]
    made = server.post(ask(**more))
    assert made.status_code == 200 and made.json()["choices"][0] == plain


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("n", {"n": 2}),
    ("n", {"n": True}),
    ("logprobs", {"logprobs": True}),
    ("top_logprobs", {"top_logprobs": 5}),
    ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    ("tool_choice", {"tool_choice": "required"}),
    ("functions", {"functions": [{"name": "f"}]}),
    ("logit_bias", {"logit_bias": {"5": -100}}),
    ("presence_penalty", {"presence_penalty": 0.5}),
    ("frequency_penalty", {"frequency_penalty": -1}),
    ("repeat_penalty", {"repeat_penalty": 1.1}),
    ("min_p", {"min_p": 0.05}),
    ("grammar", {"grammar": "root ::= x"}),
    ("reasoning_effort", {"reasoning_effort": "high"}),
    ("modalities", {"modalities": ["text", "audio"]}),
    ("continue_final_message", {"continue_final_message": True}),
    ("max_token", {"max_token": 5}),
    ("chat_template_kwargs.enable_thinking", {"chat_template_kwargs": {"enable_thinking": True}}),
    ("chat_template_kwargs.style", {"chat_template_kwargs": {"style": 1}}),
    ("stream_options", {"stream_options": {"include_usage": True}}),
    ("stream_options.every", {"stream": True, "stream_options": {"every": 1}}),
    ("max_tokens", {"max_tokens": 5, "max_completion_tokens": 6}),
    ("response_format.type", {"response_format": {"type": "xml"}}),
    ("response_format.json_schema.schema", {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}),
    ("response_format", {"response_format": {"type": "json_object", "schema": {"type": "nonsense"}}}),
    ("response_format", {"response_format": {"type": "text", "schema": {}}}),
    ("model", {"model": "gpt-5"}),
]


@pytest.mark.parametrize(("param", "more"), REFUSED)
def test_a_field_that_would_change_the_answer_is_refused_by_its_name(
    server: Running, param: str, more: dict[str, Any]
) -> None:
    made = server.post(ask(**more))
    assert made.status_code == (404 if param == "model" else 400)
    assert error_of(made)["param"] == param


def test_no_picture_is_left_out_in_silence(server: Running) -> None:
    for messages, param in (
        ([{"role": "system", "content": [image()]}, {"role": "user", "content": "?"}], "messages[0].content[0]"),
        ([{"role": "user", "content": "?"}, {"role": "assistant", "content": [image()]}], "messages[1].content[0]"),
        ([{"role": "user", "content": [image()] * 5}], "messages[0].content[4].image_url.url"),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": data_url(picture())}]}], None),
        ([{"role": "user", "content": [{"type": "image", "image": data_url(picture())}]}], None),
        ([{"role": "user", "content": [{**image(), "text": "both"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": "?", "images": [data_url(picture())]}], "messages[0].images"),
    ):
        error = error_of(server.post({"messages": messages}))
        assert error["param"] == (param or "messages[0].content[0].type"), error
    assert error_of(server.post(ask(images=[data_url(picture())])))["param"] == "images"


def test_a_conversation_that_is_too_long(server: Running) -> None:
    made = server.post(ask("word " * 3000))
    assert made.status_code == 400 and error_of(made)["code"] == "context_length_exceeded"
    made = server.post(ask("word " * 3000, stream=True))  # before the stream has begun
    assert made.status_code == 400 and error_of(made)["code"] == "context_length_exceeded"


def test_the_openai_client_raises_its_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="The field 'n' is not done here") as raised:
        client.chat.completions.create(model="eyes", messages=[{"role": "user", "content": "?"}], n=2)
    assert raised.value.param == "n" and raised.value.code == "unsupported"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-5'"):
        client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "?"}])


# --- the other routes ------------------------------------------------------------------------------------


def test_models_and_props(client: openai.OpenAI, server: Running, model: Model) -> None:
    listed: Any = client.models.list().data
    assert len(listed) == 1 and listed[0].owned_by == "edgevlm" and listed[0].id == model.info.name
    assert "eyes" in listed[0].aliases and client.models.retrieve("eyes").id == listed[0].id
    assert listed[0].architecture["input_modalities"] == ["text", "image"]
    assert listed[0].meta["n_ctx"] == listed[0].max_model_len == model.info.context_length
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    props = server.client.get("/props", params={"model": "eyes"}).json()
    assert props["default_generation_settings"]["n_ctx"] == model.info.context_length
    assert props["modalities"] == {"vision": True, "audio": False} and props["total_slots"] == 1


def test_metrics(tiny_bundle: Path) -> None:
    with serving(tiny_bundle) as server, serving(tiny_bundle) as other:
        made = server.post(ask([image()])).json()
        server.post(ask(stream=True))
        server.post(ask(n=2))

        def read(running: Running) -> dict[str, float]:
            text = running.client.get("/metrics").text
            samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
            return {f"{s.name}{sorted(s.labels.values())}": s.value for s in samples}

        found, untouched = read(server), read(other)
    assert found["edgevlm_answers_total['length']"] == 2 and "edgevlm_answers_total['length']" not in untouched
    assert found["edgevlm_requests_total['/v1/chat/completions', '200']"] == 2
    assert found["edgevlm_requests_total['/v1/chat/completions', '400']"] == 1
    assert found["edgevlm_time_to_first_token_seconds_count[]"] == 2 and found["edgevlm_queue_depth[]"] == 0
    assert found["edgevlm_tokens_total['image']"] == made["usage"]["prompt_tokens_details"]["image_tokens"]
    assert found["edgevlm_tokens_total['answer']"] == 12 and found["edgevlm_sessions_busy[]"] == 0
    for stage in ("preprocess", "encode", "prefill", "decode"):
        assert found[f"edgevlm_stage_seconds_count['{stage}']"] == 2


def test_the_page_and_its_policy(tiny_bundle: Path, tmp_path: Path) -> None:
    from edgevlm.serve.pages import FILES, read_pages

    for number, (name, _) in enumerate(FILES.values()):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"file {number}")
    assert set(read_pages(tmp_path)) == {"/", "/page.css", "/page.js", "/look.css"}
    with serving(tiny_bundle, api_key="secret") as server:
        for path, page in read_pages().items():
            made = server.client.get(path)
            assert made.status_code == 200 and made.content == page.content
            policy = made.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
            assert made.headers["x-content-type-options"] == "nosniff"
            assert made.headers["referrer-policy"] == "no-referrer"
            assert "camera=(self)" in made.headers["permissions-policy"]
            assert b"secret" not in made.content
