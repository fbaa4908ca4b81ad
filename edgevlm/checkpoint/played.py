"""What a chat template makes of conversations, in a second process."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from edgevlm.checkpoint import template_player
from edgevlm.errors import EdgeVLMError, EdgeVLMWarning, install_hint
from edgevlm.io.child import ChildFailed, Limits, ask_child

Message = Mapping[str, Any]
Render = Callable[..., str]  # of messages, whether an answer is asked for, and perhaps whether to think first
Asked = tuple[Sequence[Message], bool, "bool | None"]
PLAYER = Limits(seconds=10, memory=512 << 20)  # a template takes 0.1 s


def played(path: Path, template: str, tokens: Mapping[str, str], asked: Sequence[Asked], image_token: str) -> Render:
    """What the template makes of every conversation of `asked`, rendered all at once.

    Messages are lists of items. A template that prints such a list, or fails on it, is given messages without pictures
    as text, and one of the decoder alone, which does so with a user's, all of them. Raises EdgeVLMError where it is
    none, and later where it cannot format a conversation.
    """
    forms: list[list[Asked]] = [
        [(messages, generation, thinking) for messages, generation, thinking in asked],
        [(_flat(messages), generation, thinking) for messages, generation, thinking in asked],
        [(_flat(messages, image_token), generation, thinking) for messages, generation, thinking in asked],
    ]
    request = {"template": template, "tokens": dict(tokens), "conversations": [case for form in forms for case in form]}
    try:
        answer = json.loads(_answer(json.dumps(request).encode()))
    except ChildFailed as e:
        raise EdgeVLMError(f"'{path}', a chat template, {e.reason}: use the template of the original model.") from None
    except ModuleNotFoundError:
        raise EdgeVLMError(
            f"'{path}' is a chat template, which jinja2 reads: {install_hint('export')}, and export again."
        ) from None
    if "wrong" in answer:
        raise EdgeVLMError(f"'{path}' is not a chat template ({_quoted(answer['wrong'])}): take the original file.")
    if answer["today"]:
        warnings.warn(
            f"'{path}' writes today's date into the prompt; the bundle will keep this date.",
            EdgeVLMWarning,
            stacklevel=2,
        )
    count, said = len(asked), answer["texts"]
    listed, mixed, flat = (said[start : start + count] for start in range(0, 3 * count, count))
    found = flat if _is_lost(listed[0]) else [m if _is_lost(one) else one for one, m in zip(listed, mixed, strict=True)]
    texts = {_key(*case): text for case, text in zip(asked, found, strict=True)}

    def run(messages: Sequence[Message], generation: bool, thinking: bool | None = None) -> str:
        text = texts[_key(messages, generation, thinking)]
        if isinstance(text, dict):
            raise EdgeVLMError(
                f"'{path}' cannot format a conversation ({_quoted(text['error'])}): use the chat template of the "
                "original model."
            )
        return str(text)

    run(*asked[0])
    return run


@lru_cache(maxsize=16)  # one export reads its template several times, and each process takes 0.1 s
def _answer(request: bytes) -> bytes:
    answer = ask_child("edgevlm.checkpoint.template_player", request, PLAYER)
    if answer == template_player.NO_JINJA:
        raise ModuleNotFoundError("jinja2")
    return answer


def _is_lost(text: Any) -> bool:
    """Whether a list of items was printed as one, or was more than the template takes."""
    return isinstance(text, dict) or "'type'" in text


def _flat(messages: Sequence[Message], image_token: str | None = None) -> list[Message]:
    """Messages as text; without an image token, those without pictures."""
    return [
        message
        if image_token is None and any("text" not in item for item in message["content"])
        else {**message, "content": "".join(item.get("text", image_token) for item in message["content"])}
        for message in messages
    ]


def _key(messages: Sequence[Message], generation: bool, thinking: bool | None) -> str:
    return json.dumps([messages, generation, thinking])


def _quoted(said: str) -> str:
    """What a stranger's template said, on one short line."""
    return said[:200] if said[:200].isprintable() else ascii(said[:200])
