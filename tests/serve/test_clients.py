"""Requests in the form that other programs send, and what they read of the answers, each from its own source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving import Running, data_url, picture, serving

JPEG = picture(3, 96, "JPEG")


@pytest.fixture(scope="module")
def server(tiny_bundle: Path) -> Iterator[Running]:
    with serving(tiny_bundle, aliases=("smolvlm",), max_tokens=400) as running:
        yield running


# --- Frigate -----------------------------------------------------------------------------------------------
# blakeblackshear/frigate at e3fa701 (July 2026)

# What frigate/genai/prompts.py (build_review_description_response_format) makes of ReviewMetadata in
# frigate/data_processing/post/types.py, as pydantic writes it; descriptions cut.
REVIEW = {
    "additionalProperties": False,
    "properties": {
        "observations": {
            "description": "Enumerate the significant observations across all frames.",
            "items": {"maxLength": 200, "minLength": 20, "type": "string"},
            "maxItems": 8,
            "minItems": 3,
            "title": "Observations",
            "type": "array",
        },
        "scene": {"maxLength": 600, "minLength": 150, "title": "Scene", "type": "string"},
        "title": {"description": "Title for the activity.", "maxLength": 80, "title": "Title", "type": "string"},
        "shortSummary": {"maxLength": 140, "minLength": 70, "title": "Shortsummary", "type": "string"},
        "confidence": {"maximum": 1.0, "minimum": 0.0, "title": "Confidence", "type": "number"},
        "potential_threat_level": {"maximum": 2, "minimum": 0, "title": "Potential Threat Level", "type": "integer"},
        "other_concerns": {
            "anyOf": [{"items": {"type": "string"}, "type": "array"}, {"type": "null"}],
            "default": None,
            "title": "Other Concerns",
        },
    },
    "required": ["observations", "scene", "title", "shortSummary", "confidence", "potential_threat_level"],
    "title": "ReviewMetadata",
    "type": "object",
}
REVIEW_FORMAT = {"type": "json_schema", "json_schema": {"name": "review_metadata", "strict": True, "schema": REVIEW}}


def test_frigates_openai_provider(server: Running) -> None:
    """frigate/genai/plugins/openai.py: _send (text first, then JPEGs with low detail), get_context_size."""
    content: Any = [{"type": "text", "text": "Describe the person in these frames."}]
    for _ in range(3):
        content.append({"type": "image_url", "image_url": {"url": data_url(JPEG, "jpeg"), "detail": "low"}})
    with openai.OpenAI(api_key="unused", base_url=f"{server.address}/v1", max_retries=0) as provider:
        asked: Any = {"model": "smolvlm", "messages": [{"role": "user", "content": content}], "timeout": 60}
        result = provider.chat.completions.create(**asked)
        assert result.choices[0].message.content is not None and len(result.choices) > 0
        usage: Any = result.usage
        assert usage.prompt_tokens_details.image_tokens == 3 * 16  # one tile each, and none lost
        result = provider.chat.completions.create(**asked, response_format=REVIEW_FORMAT)
        text = result.choices[0].message.content or ""
        assert text.startswith('{"observations": ["') and result.choices[0].finish_reason in ("stop", "length")
        stream = provider.chat.completions.create(
            **{**asked, "messages": [{"role": "user", "content": "Hello"}]}, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        usages = [chunk.usage for chunk in stream if chunk.usage is not None]
        assert len(usages) == 1 and usages[0].prompt_tokens > 0 and usages[0].completion_tokens > 0
        listed = {entry.id: entry for entry in provider.models.list().data}
        assert all(entry.max_model_len == 2048 for entry in listed.values())  # type: ignore[attr-defined]


def test_frigates_llama_cpp_provider(server: Running) -> None:
    """frigate/genai/plugins/llama_cpp.py: _get_model_info, _probe_prompt_tokens, _send, chat_with_tools_stream."""
    models = server.client.get("/v1/models", timeout=10).json()["data"]
    entry = next(model for model in models if "smolvlm" in {model["id"], *model["aliases"]})
    assert "image" in entry["architecture"]["input_modalities"] and entry["meta"]["n_ctx"] == 2048
    props = server.client.get("/props", params={"model": "smolvlm"}, timeout=10).json()
    assert props["default_generation_settings"]["n_ctx"] == 2048 and props["modalities"]["vision"] is True
    assert not props["chat_template_caps"]["supports_tools"] and "enable_thinking" not in props["chat_template"]

    def prompt_tokens(content: list[dict[str, Any]]) -> int:
        payload = {"model": "smolvlm", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
        return int(server.post(payload).raise_for_status().json()["usage"]["prompt_tokens"])

    text: dict[str, Any] = {"type": "text", "text": "."}
    shown = {"type": "image_url", "image_url": {"url": data_url(JPEG, "jpeg")}}
    assert prompt_tokens([text, shown]) - prompt_tokens([text]) >= 16  # what a picture costs

    payload = {"model": "smolvlm", "messages": [{"role": "user", "content": [text, shown]}], "temperature": 0.2}
    answer = server.post({**payload, "top_k": 40, "top_p": 0.9, "seed": 1, "response_format": REVIEW_FORMAT}).json()
    assert answer["choices"][0]["message"]["content"].strip().startswith('{"observations": ["')

    payload = {"messages": [{"role": "user", "content": "Hello"}], "model": "smolvlm", "stream": True}
    payload |= {"stream_options": {"include_usage": True}, "timings_per_token": True, "temperature": 0.0}
    said, stats = "", {}
    with server.client.stream("POST", "/v1/chat/completions", json=payload) as response:
        for line in response.iter_lines():
            if not line.startswith("data: "):
                continue
            if (data := line[6:].strip()) == "[DONE]":
                break
            chunk = json.loads(data)
            stats |= {**(chunk.get("usage") or {}), **(chunk.get("timings") or {})}
            for choice in chunk.get("choices") or []:
                said += choice.get("delta", {}).get("content") or ""
    assert said and stats["prompt_tokens"] > 0 and stats["completion_tokens"] == stats["predicted_n"]
    assert stats["predicted_ms"] > 0 and stats["predicted_per_second"] > 0


# --- Home Assistant ----------------------------------------------------------------------------------------
# skye-harris/hass_local_openai_llm at 5466c17 (August 2026). Home Assistant's own openai_conversation speaks the
# Responses API with OpenAI's servers alone.


async def _home_assistant(address: str, structure: bool) -> tuple[str, Any]:
    """custom_components/local_openai/entity.py: _convert_content_to_chat_message, _async_handle_chat_log,
    _transform_stream; entities/llama_cpp.py: _get_extra_body_args."""
    messages: Any = [
        {"role": "system", "content": "You are a Home Assistant expert and help users with their tasks."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": data_url(JPEG, "jpeg"), "detail": "auto"}},
                {"type": "text", "text": "Is the bin at the road?"},
            ],
        },
    ]
    args: dict[str, Any] = {
        "model": "smolvlm",
        "temperature": 0.6,
        "parallel_tool_calls": False,
        "extra_headers": {"HTTP-Referer": "https://example.org", "X-Title": "Home Assistant"},
        "messages": messages,
        "extra_body": {
            "chat_template_kwargs": {"enable_thinking": False},
            "id_slot": 0,
            "metadata": {"session_id": "x"},
        },
    }
    if structure:  # _format_structured_output and _adjust_schema: every property required, optional ones nullable
        schema = {
            "type": "object",
            "properties": {
                "bin": {"type": "boolean"},
                "colour": {"type": ["string", "null"], "enum": ["red", "green"]},
            },
            "required": ["bin", "colour"],
        }
        form = {"name": "bins", "strict": True, "schema": schema}
        args["response_format"] = {"type": "json_schema", "json_schema": form}
    text, timings = "", None
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        assert [model.id async for model in client.models.list()]
        stream = await client.chat.completions.create(**args, stream=True)
        async for event in stream:
            choice = event.choices[0]
            text += choice.delta.content or ""
            assert choice.delta.tool_calls is None
            if choice.finish_reason:
                timings = event.timings
    return text, timings


@pytest.mark.parametrize("structure", [True, False])
def test_home_assistants_ai_task(server: Running, structure: bool) -> None:
    import asyncio

    text, timings = asyncio.run(_home_assistant(server.address, structure))
    assert timings["image_n"] > 0 and timings["predicted_n"] > 0
    if structure:
        answer = json.loads(text)
        assert isinstance(answer["bin"], bool) and answer["colour"] in ("red", "green")


# --- by hand -----------------------------------------------------------------------------------------------


def test_curl_and_old_http(server: Running) -> None:
    """HTTP/1.0 without keep-alive, a body in chunks, `Expect: 100-continue`."""
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}).encode()
    name = f"Host: localhost:{server.port}\r\nContent-Type: application/json; charset=utf-8\r\n".encode()
    old = b"POST /v1/chat/completions HTTP/1.0\r\n" + name + b"Content-Length: %d\r\n\r\n" % len(body) + body
    assert server.send(old).startswith(b"HTTP/1.1 200")
    post = b"POST /v1/chat/completions HTTP/1.1\r\n" + name
    pieces = b"".join(b"%x\r\n%s\r\n" % (1, body[i : i + 1]) for i in range(len(body))) + b"0\r\n\r\n"
    assert server.send(post + b"Transfer-Encoding: chunked\r\n\r\n", pieces).startswith(b"HTTP/1.1 200")
    waiting = post + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(body)
    found = server.send(waiting, body, pause=0.2, wait=1)
    assert found.startswith(b"HTTP/1.1 100") and b"HTTP/1.1 200" in found


def test_a_head_and_an_unknown_method(server: Running) -> None:
    assert server.client.head("/health").status_code == 200
    for method, path in (("OPTIONS", "/v1/chat/completions"), ("GET", "/v1/chat/completions"), ("PUT", "/health")):
        made = httpx.request(method, server.address + path)
        assert made.status_code == 405 and made.json()["error"]["code"] == "method_not_allowed"
        assert not [name for name in made.headers if name.startswith("access-control")]
