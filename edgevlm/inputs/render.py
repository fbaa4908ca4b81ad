"""Messages -> a chat format's text, piece by piece (docs/preprocessing.md, section 7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from edgevlm.errors import EdgeVLMError, Unsupported
from edgevlm.inputs.spec import Chat

MOST_TEXT = 4 << 20  # characters of a prompt: the longest context is of a million tokens

Conversation = str | Sequence[Mapping[str, Any]]

PICTURES = ("image", "video")  # types of items that are not text


@dataclass(frozen=True)
class ControlText:
    """Text of the spec, in which special tokens are recognized."""

    text: str


@dataclass(frozen=True)
class UserText:
    """Text of the user, in which special tokens are read as plain text."""

    text: str


class Said(str):
    """A model's answer as the text of a later message, with the tokens that it is made of.

    ids: without the one that ended it. written: their text, with special tokens spelled and nothing cut off. Where the
    format writes the message as the model wrote it, its tokens stand in the prompt; elsewhere the text counts.
    """

    ids: tuple[int, ...]
    written: str

    def __new__(cls, text: str, ids: Sequence[int], written: str) -> Said:
        made = super().__new__(cls, text)
        made.ids, made.written = tuple(ids), written
        return made


@dataclass(frozen=True)
class AnswerText:
    """An answer of before, in the tokens that the model wrote."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Picture:
    """The place of the conversation's `index`-th image."""

    index: int


def messages_of(conversation: Conversation, num_images: int) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """(role, content items) of each message; a bare question becomes one user message, its images first.

    EdgeVLMError where the conversation is malformed or does not hold exactly `num_images` images.
    """
    if isinstance(conversation, str):
        images = [{"type": "image"}] * num_images
        conversation = [{"role": "user", "content": [*images, {"type": "text", "text": conversation}]}]
    messages = []
    for number, message in enumerate(conversation, 1):
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, Sequence) or not content or not all(map(_is_item, content)):
            raise EdgeVLMError(
                f"Message {number} is malformed: expected a role and a content that is a text or a list of "
                '{"type": "text", "text": ...} and {"type": "image"} items, at least one.'
            )
        messages.append((str(message.get("role")), list(content)))
    if not messages:
        raise EdgeVLMError("The conversation is empty: ask at least one question.")
    found = sum(item["type"] in PICTURES for _, content in messages for item in content)
    if found != num_images:
        raise EdgeVLMError(
            f"The conversation has {found} image items for {num_images} pictures: give one picture for each."
        )
    return messages


def render(
    chat: Chat, conversation: Conversation, num_images: int, *, add_generation_prompt: bool = True
) -> Iterator[ControlText | UserText | AnswerText | Picture]:
    """The conversation in the checkpoint's chat format, image places not yet filled."""
    messages = messages_of(conversation, num_images)
    if chat.pictures is not None and num_images > chat.pictures:
        raise Unsupported(
            f"This model looks at {chat.pictures} picture{'s' if chat.pictures > 1 else ''} at a time, and was given "
            f"{num_images}: ask about each by itself."
        )
    yield ControlText(chat.prefix)
    if messages[0][0] != "system":
        yield ControlText(chat.default_system)
    number, system = count(), list[ControlText | UserText | Picture]()
    for place, (role, content) in enumerate(messages):
        if role not in chat.roles:
            raise EdgeVLMError(f"The role '{role}' is unknown to this model: use {', '.join(sorted(chat.roles))}.")
        if role == "system" and place and chat.system_first:
            raise EdgeVLMError(
                "This model takes a system message at the beginning alone: put it first, or leave it out."
            )
        around = chat.roles[role]
        if chat.images_first:
            content = sorted(content, key=lambda item: item["type"] not in PICTURES)
        if around.open_image is None and any(item["type"] in PICTURES for item in content):
            raise Unsupported(f"The role '{role}' takes no pictures in this model: put them into a user's message.")
        as_image = content[0]["type"] in PICTURES and not content[0].get("like_text")
        opening = ControlText((around.open_image or "") if as_image else around.open_text)
        parts, close = list(_items(chat, role, content, number)), ControlText(around.close)
        if role == "system" and chat.system == "in_first_user":
            system += [opening, *parts, close]
            continue
        said = content[0].get("text")
        if isinstance(said, Said) and len(content) == 1 and _as_said(chat, said, opening, parts):
            yield from (ControlText(chat.generation), AnswerText(said.written, said.ids), close)
            continue
        yield opening
        if role == "system" and not place:
            yield ControlText(chat.system_mark)
        yield from system
        system.clear()
        yield from parts
        yield close
    if add_generation_prompt:
        yield ControlText(chat.generation)


def _as_said(chat: Chat, said: Said, opening: ControlText, parts: Sequence[ControlText | UserText | Picture]) -> bool:
    """Whether an answer of before is written as the model wrote it, behind the words that asked for it."""
    texts = (opening, *parts)
    written = "".join(part.text for part in texts if not isinstance(part, Picture))
    return written == chat.generation + said.written


def takes(chat: Chat, conversation: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the format has each message's role, and pictures in it where the message has some, but not too many."""
    count = sum(item["type"] == "image" for message in conversation for item in message["content"])
    return (chat.pictures is None or count <= chat.pictures) and all(
        message["role"] in chat.roles
        and (
            chat.roles[message["role"]].open_image is not None
            or all(item["type"] not in PICTURES for item in message["content"])
        )
        for message in conversation
    )


def _items(
    chat: Chat, role: str, content: Sequence[Mapping[str, Any]], number: Iterator[int]
) -> Iterator[ControlText | UserText | Picture]:
    last = len(content) - 1
    around = chat.roles[role]
    image_after = chat.image_after if around.image_after is None else around.image_after
    trims = around.trim or (chat.trim and not (chat.trim_each and role == "system"))
    for place, item in enumerate(content):
        yield ControlText(chat.join if place else "")
        if item["type"] == "video":
            yield Picture(next(number))
            continue
        if item["type"] == "image":
            yield ControlText(chat.image_before if place else "")
            yield Picture(next(number))
            yield ControlText(image_after if place != last else "")
            continue
        text = item["text"]
        if trims and (chat.trim_each or place == 0):
            text = text.lstrip()
        if trims and (chat.trim_each or place == last):
            text = text.rstrip()
        if place and content[place - 1]["type"] == "text":
            yield ControlText(chat.text_join)
        yield ControlText(chat.text_open)
        yield UserText(text)
        yield ControlText(chat.text_close)


def check_length(characters: int) -> None:
    if characters > MOST_TEXT:
        raise EdgeVLMError(
            f"The conversation has more than {MOST_TEXT} characters, more than any model reads: shorten it."
        )


def _is_item(item: Any) -> bool:
    if not isinstance(item, Mapping):
        return False
    if item.get("type") == "image" or (item.get("type") == "video" and "like_text" in item):
        return True
    text = item.get("text")
    if item.get("type") != "text" or not isinstance(text, str):
        return False
    check_length(len(text))
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise EdgeVLMError("The question is not valid Unicode text: type it again in UTF-8.")
    return True
