"""An answer -> what a client is sent: one object, or chunks as it comes."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from edgevlm import __version__
from edgevlm.generate.answer import Answer, Timings

DONE = b"data: [DONE]\n\n"


def event(value: Any) -> bytes:
    """A server-sent event. In ASCII: many clients end a line at U+2028 or U+0085, too."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def usage(timings: Timings) -> dict[str, Any]:
    return {
        "prompt_tokens": timings.prompt_tokens,
        "completion_tokens": timings.answer_tokens,
        "total_tokens": timings.prompt_tokens + timings.answer_tokens,
        "prompt_tokens_details": {"cached_tokens": timings.reused_tokens, "image_tokens": timings.image_tokens},
    }


def timings_of(timings: Timings) -> dict[str, Any]:
    """By llama.cpp's names, with our stages before: milliseconds, and tokens."""
    read = timings.prompt_tokens - timings.reused_tokens
    return {
        "preprocess_ms": _ms(timings.preprocess),
        "encode_ms": _ms(timings.encode),
        "image_n": timings.image_tokens,
        "cache_n": timings.reused_tokens,
        "prompt_n": read,
        "prompt_ms": _ms(timings.prefill),
        "prompt_per_second": round(read / timings.prefill, 3) if timings.prefill else 0.0,
        "predicted_n": timings.answer_tokens,
        "predicted_ms": _ms(timings.decode),
        "predicted_per_second": round(timings.tokens_per_second, 3),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def places(answer: Answer) -> dict[str, Any]:
    """What the answer points at, in pixels of the picture."""
    boxes = [{"label": b.label, "x0": b.x0, "y0": b.y0, "x1": b.x1, "y1": b.y1} for b in answer.boxes]
    return {"boxes": boxes, "points": [{"label": p.label, "x": p.x, "y": p.y} for p in answer.points]}


class Completion:
    """The objects of one answer."""

    def __init__(self, model: str, include_usage: bool = False) -> None:
        """include_usage: of a stream, which then says in each chunk that it comes later."""
        self.id, self._usage = f"chatcmpl-{secrets.token_hex(12)}", include_usage
        self._head = {"created": int(time.time()), "model": model, "system_fingerprint": f"edgevlm-{__version__}"}

    def whole(self, answer: Answer) -> dict[str, Any]:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
        return {
            "id": self.id,
            "object": "chat.completion",
            **self._head,
            "choices": [choice],
            "usage": usage(answer.timings),
            "timings": timings_of(answer.timings),
            "edgevlm": places(answer),
        }

    def first(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> bytes:
        return self._chunk({"content": text})

    def last(self, answer: Answer) -> bytes:
        """How the answer ended, what is known of it, and the end of the stream."""
        timings = timings_of(answer.timings)
        end = self._chunk({}, answer.finish_reason, {"timings": timings, "edgevlm": places(answer)})
        if self._usage:
            counted = {"usage": usage(answer.timings), "timings": timings}
            end += event({"id": self.id, "object": "chat.completion.chunk", **self._head, "choices": [], **counted})
        return end + DONE

    def _chunk(self, delta: dict[str, str], reason: str | None = None, more: dict[str, Any] | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        beside = ({"usage": None} if self._usage else {}) | (more or {})
        return event({"id": self.id, "object": "chat.completion.chunk", **self._head, "choices": [choice], **beside})
