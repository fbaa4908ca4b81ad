"""Training records in the form of OpenAI and TRL, as turns with picture markers and the pictures' names.

{"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
{"role": "assistant", "content": "A cat."}], "images": ["a.png"]}. A content is a text or a list of items; a picture is
named in its item ("image", "path", "url", or "image_url" as a text or as {"url": ...}), or comes from the record's
list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

MARKER = "<image>"
ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
    "developer": "system",
}  # fmt: skip
_PICTURES = ("image", "image_url", "input_image")
_TEXTS = ("text", "input_text", "output_text")
_NAMES = ("image", "path", "url", "image_url")
Bad = Callable[[str], Exception]


def read_messages(messages: Any, names: list[str], bad: Bad) -> tuple[list[dict[str, str]], list[str]]:
    """Turns {"role", "content"} with a marker for each picture, and the pictures' names in that order.

    names: the record's own list, which items without a name and markers inside texts take theirs from.
    """
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise bad("'messages' should be a list of messages, at least one")
    rest = iter(names)
    turns: list[dict[str, str]] = []
    found: list[str] = []
    for message in messages:
        role = ROLES.get(str(message.get("role")))
        if role is None:
            raise bad(f"'role' is {str(message.get('role'))[:40]!r}, expected user, assistant or system")
        parts = list(_parts(message.get("content"), bad))
        for text, name in parts:
            if text is None:
                found += [name] if name else list(_next(rest))
            elif role == "user":
                found += [taken for _ in range(text.count(MARKER)) for taken in _next(rest)]
        if role != "user" and any(text is None for text, _ in parts):
            raise bad(f"the {role} message holds a picture, expected texts only")
        if any(text is None for text, _ in parts) and any(MARKER in (text or "") for text, _ in parts):
            raise bad(f"a message holds both pictures and the text {MARKER}, which would stand for one more")
        turns.append({"role": role, "content": "".join(MARKER if text is None else text for text, _ in parts)})
    return turns, [*found, *rest]


def _next(rest: Iterator[str]) -> Iterator[str]:
    """One more name, if there is one: how many there are is compared with the markers later."""
    name = next(rest, None)
    yield from [] if name is None else [name]


def _parts(content: Any, bad: Bad) -> Iterator[tuple[str | None, str | None]]:
    """(text, None), or (None, a picture's name if the item has one)."""
    if isinstance(content, str):
        yield content, None
        return
    if not isinstance(content, list) or not content or not all(isinstance(item, dict) for item in content):
        raise bad(f"'content' should be a text or a list of items, found {str(content)[:80]!r}")
    for item in content:
        kind = item.get("type")
        if kind in _TEXTS:
            if not isinstance(item.get("text"), str):
                raise bad(f"a text item should hold 'text', found {str(item)[:80]!r}")
            yield item["text"], None
        elif kind in _PICTURES:
            yield None, _name(item, bad)
        else:
            raise bad(f"'type' is {str(kind)[:40]!r}, expected text, image or image_url")


def _name(item: dict[str, Any], bad: Bad) -> str | None:
    value = next((item[key] for key in _NAMES if item.get(key) is not None), None)
    if isinstance(value, dict):
        value = value.get("url", value.get("path"))
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise bad(f"a picture's item should name a file, found {str(value)[:80]!r}")
    if value.startswith(("data:", "http://", "https://")):
        raise bad(f"the picture {value[:40]!r} is no file: save it beside the data and name it by its path")
    return value.removeprefix("file://")
