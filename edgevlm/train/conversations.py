"""One record of training data, as a conversation about pictures.

A record is a LLaVA conversation (github.com/haotian-liu/LLaVA, docs/Finetune_Custom_Data.md):
{"image": "a.png", "conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", "value": "..."}]},
one of OpenAI's and TRL's {"messages"} (edgevlm.train.messages), a question {"image", "question", "answer"}, as in a
Scenes folder, or, for the preference stage, {"image", "question", "chosen", "rejected"}.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits
from edgevlm.io.json import parse_json
from edgevlm.train.messages import MARKER, ROLES, read_messages

Message = dict[str, Any]  # {"role": ..., "content": [{"type": "image"} | {"type": "text", "text": ...}]}


@dataclass(frozen=True)
class Conversation:
    """One or more dialogues about the same pictures. Each ends with an assistant's message."""

    place: str  # "file:line", for messages to people
    images: tuple[Path, ...]
    dialogues: tuple[tuple[Message, ...], ...]


class BadRecord(EdgeVLMError):
    """A record that cannot be trained on; its text starts with the file and the line."""


def parse_record(text: bytes, place: str, images: Path, *, pairs: bool) -> Conversation:
    """The record in `text`. pairs: it holds "chosen" and "rejected", the two dialogues of the Conversation.

    The pictures' paths start from the folder `images` and must exist. Raises BadRecord, which names `place`.
    """

    def bad(problem: str) -> BadRecord:
        return BadRecord(f"{place}: {problem}")

    try:
        record = parse_json(text, limits.LINE)
    except ValueError as error:
        raise bad(f"this is not one whole JSON object ({str(error)[:80]})") from None
    if not isinstance(record, dict):
        raise bad(f"expected a JSON object, found {type(record).__name__}")
    turns, names = _turns(record, _image_names(record, bad), bad)
    paths = tuple(_image(name, images, bad) for name in names)
    dialogues = _pair(record, turns, bad) if pairs else (_dialogue(record, turns, bad),)
    try:
        placed = tuple(tuple(_place_images(dialogue, len(paths))) for dialogue in dialogues)
    except ValueError as error:
        raise bad(str(error)) from None
    return Conversation(place, paths, placed)


def _image(name: str, root: Path, bad: Callable[[str], BadRecord]) -> Path:
    path = Path(os.path.normpath(root / name))
    if not path.is_relative_to(os.path.normpath(root)):
        raise bad(f"the image '{name[:200]}' lies outside '{root}' (see --images)")
    try:
        found = path.is_file()
    except (OSError, ValueError):
        raise bad(f"the image '{name[:200]}' has no usable path") from None
    if not found:
        raise bad(f"the image '{path}' does not exist (image paths start from '{root}', see --images)")
    return path


def _image_names(record: Mapping[str, Any], bad: Callable[[str], BadRecord]) -> list[str]:
    value = record.get("image", record.get("images"))
    names = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name for name in names):
        raise bad(f"'image' should be a path or a list of paths, found {str(value)[:80]!r}")
    return names


def _dialogue(record: Mapping[str, Any], turns: list[Message] | None, bad: Callable[[str], BadRecord]) -> list[Message]:
    if turns is not None:
        if not any(turn["role"] == "assistant" for turn in turns):
            raise bad("no turn is an answer, that is, from gpt or of the role assistant")
        while turns[-1]["role"] != "assistant":
            turns.pop()
        return turns
    if "question" in record and "answer" in record:
        return [
            {"role": "user", "content": _text(record, "question", bad)},
            {"role": "assistant", "content": _text(record, "answer", bad)},
        ]
    found = ", ".join(sorted(record)[:8]) or "nothing"
    raise bad(f"expected 'messages', 'conversations', or 'question' and 'answer', found {found}")


def _pair(
    record: Mapping[str, Any], turns: list[Message] | None, bad: Callable[[str], BadRecord]
) -> tuple[list[Message], list[Message]]:
    if "chosen" not in record or "rejected" not in record:
        found = ", ".join(sorted(record)[:8]) or "nothing"
        raise bad(f"expected 'chosen' and 'rejected', found {found}")
    if turns is not None:
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()
        if not turns:
            raise bad("the conversation holds no question")
    else:
        turns = [{"role": "user", "content": _text(record, "question", bad)}]
    chosen, rejected = _answer(record, "chosen", bad), _answer(record, "rejected", bad)
    if chosen == rejected:
        raise bad("'chosen' and 'rejected' are the same answer")
    answers = ({"role": "assistant", "content": chosen}, {"role": "assistant", "content": rejected})
    return [*turns, answers[0]], [*turns, answers[1]]


def _answer(record: Mapping[str, Any], key: str, bad: Callable[[str], BadRecord]) -> str:
    """A text, or TRL's list of one assistant message."""
    if not isinstance(record[key], list):
        return _text(record, key, bad)
    turns, names = read_messages(record[key], [], bad)
    if names or len(turns) != 1 or turns[0]["role"] != "assistant":
        raise bad(f"'{key}' should be a text, or one message of the assistant")
    return _text({key: turns[0]["content"]}, key, bad)


def _turns(
    record: Mapping[str, Any], names: list[str], bad: Callable[[str], BadRecord]
) -> tuple[list[Message] | None, list[str]]:
    """The turns of a record that has some, each content one text with markers, and its pictures' names."""
    messages = record.get("messages")
    if messages is None and isinstance(record.get("prompt"), list):  # TRL's pairs, and prompts with completions
        completion = record.get("completion")
        messages = record["prompt"] + (completion if isinstance(completion, list) else [])
    if messages is not None:
        turns, names = read_messages(messages, names, bad)
        return [turn | {"content": _text(turn, "content", bad)} for turn in turns], names
    if "conversations" not in record:
        return None, names
    value = record["conversations"]
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        raise bad("'conversations' should be a list of turns, at least one")
    found = []
    for turn in value:
        role = ROLES.get(str(turn.get("from")))
        if role is None:
            raise bad(f"'from' is {str(turn.get('from'))[:40]!r}, expected human, gpt or system")
        found.append({"role": role, "content": _text(turn, "value", bad)})
    return found, names


def _text(record: Mapping[str, Any], key: str, bad: Callable[[str], BadRecord]) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise bad(f"'{key}' should be a text, found {str(value)[:80]!r}" if key in record else f"'{key}' is missing")
    if not value.strip():
        raise bad(f"'{key}' is empty")
    if re.search("[\ud800-\udfff]", value):
        raise bad(f"'{key}' is not valid Unicode")
    return value.strip()


def _place_images(turns: list[Message], count: int) -> Iterator[Message]:
    """Markers become image items; pictures without one stand before the first question, as `edgevlm run` has them."""
    marked = sum(turn["content"].count(MARKER) for turn in turns if turn["role"] == "user")
    if marked not in (0, count):
        raise ValueError(f"there are {marked} {MARKER} markers for {count} images")
    unplaced = count - marked
    for turn in turns:
        items: list[Message] = []
        texts = turn["content"].split(MARKER) if turn["role"] == "user" else [turn["content"]]
        if turn["role"] == "user" and unplaced:
            items, unplaced = [{"type": "image"}] * unplaced, 0
        for number, text in enumerate(texts):
            items += [{"type": "image"}] if number else []
            items += [{"type": "text", "text": text.strip()}] if text.strip() else []
        yield {"role": turn["role"], "content": items}
