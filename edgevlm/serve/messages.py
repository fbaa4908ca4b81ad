"""The messages of a request -> a conversation as `Pipeline.ask` takes it."""

from __future__ import annotations

from typing import Any

from edgevlm.serve.options import ServeOptions
from edgevlm.serve.pictures import Fetch, read_picture
from edgevlm.serve.refusals import Refusal, wrong

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MOST = 1024  # messages, and parts of one
DETAILS = {"auto": False, "high": False, "low": True}  # whether a picture is to take one tile
# What a client sends back of an answer, or writes for itself.
_BESIDE = {"reasoning_content", "reasoning", "annotations", "refusal", "audio", "function_call", "tool_calls"}


def conversation_of(messages: Any, options: ServeOptions, fetch: Fetch) -> list[dict[str, Any]]:
    """Raises Refusal that names the part which is wrong."""
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", 'messages is no list of messages: send [{"role": "user", "content": "What is this?"}].')
    if len(messages) > MOST:
        raise wrong("messages", f"There are {len(messages)} messages, at most {MOST} are taken.")
    pictures = _Pictures(options, fetch)
    found = [_message(message, f"messages[{place}]", pictures) for place, message in enumerate(messages)]
    if found[-1]["role"] == "assistant":
        raise wrong(
            f"messages[{len(found) - 1}].role",
            "The last message is the assistant's, and an answer is not continued here: end with a user's message.",
            "unsupported",
        )
    return found


def _message(message: Any, where: str, pictures: _Pictures) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise wrong(where, f"A message is of type {type(message).__name__}: give an object with role and content.")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        tool = role in ("tool", "function")
        why = "the model has no tool template" if tool else f"give {', '.join(ROLES)}"
        raise wrong(f"{where}.role", f"The role of a message is none that is done: {why}.", "unsupported")
    for name, value in message.items():
        if name in ("role", "content") or value in (None, [], ""):
            continue
        if name in ("tool_calls", "function_call"):
            raise wrong(f"{where}.{name}", "The model has no tool template: leave tool calls out.", "unsupported")
        if name not in _BESIDE:
            raise wrong(f"{where}.{name}"[:200], "This field of a message is not known here: leave it out.", "unknown")
    content, place = message.get("content"), f"{where}.content"
    if isinstance(content, str):
        return {"role": ROLES[role], "content": content}
    if not isinstance(content, list) or not 1 <= len(content) <= MOST:
        raise wrong(place, f"The content of a message is no text and no list of 1 to {MOST} parts.")
    parts = [_part(part, f"{place}[{number}]", role, pictures) for number, part in enumerate(content)]
    return {"role": ROLES[role], "content": parts}


def _part(part: Any, where: str, role: str, pictures: _Pictures) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "image_url"):
        raise wrong(
            f"{where}.type", "A part of a message is no text and no image_url: give one of these.", "unsupported"
        )
    if more := sorted(part.keys() - {"type", kind}):
        raise wrong(f"{where}.{more[0]}"[:200], "This field of a part is not known here: leave it out.", "unknown")
    value = part.get(kind)
    if kind == "text":
        if not isinstance(value, str):
            raise wrong(f"{where}.text", f"The text of a part is of type {type(value).__name__}: give a text.")
        return {"type": "text", "text": value}
    if role != "user":
        raise wrong(where, "A picture stands in a message that is no user's: put it into a user's.", "unsupported")
    return {"type": "image", "image": pictures.read(value, f"{where}.image_url")}


class _Pictures:
    """Those of one request."""

    def __init__(self, options: ServeOptions, fetch: Fetch) -> None:
        self._options, self._fetch, self._count = options, fetch, 0

    def read(self, value: Any, where: str) -> Any:
        options, address = self._options, value
        detail: Any = None
        if isinstance(value, dict):
            if more := sorted(value.keys() - {"url", "detail"}):
                raise wrong(
                    f"{where}.{more[0]}"[:200], "This field of a picture is not known: leave it out.", "unknown"
                )
            address, detail, where = value.get("url"), value.get("detail"), f"{where}.url"
        if not isinstance(address, str):
            raise wrong(where, "A picture has no address: give {'url': 'data:image/jpeg;base64,...'}.", "invalid_image")
        detail = "auto" if detail is None else detail
        if not isinstance(detail, str) or detail not in DETAILS:
            raise wrong(f"{where.removesuffix('.url')}.detail", f"detail is none of {', '.join(DETAILS)}.")
        self._count += 1
        if self._count > options.max_pictures:
            raise Refusal(
                400,
                f"The request has over {options.max_pictures} pictures: send fewer, or start the server with "
                "--max-pictures N.",
                param=where,
                code="too_many_images",
            )
        return read_picture(
            address, where, options.max_pixels, self._fetch, 1 if DETAILS[detail] else options.max_tiles
        )
