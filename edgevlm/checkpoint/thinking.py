"""The switch of a chat template that tells a model to think before it answers, or not to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.spec import Chat


def with_switch(chat: Chat, run: Callable[..., str], conversations: Sequence[Any]) -> Chat:
    """The format with what asks for an answer with and without thinking, where the template is told by a switch.

    run: what the template makes of a conversation, whether an answer is asked for, and the switch. This may change the
    end of a prompt alone, and by the same text in every conversation.
    """
    ends: dict[bool, set[str | None]] = {True: set(), False: set()}
    for messages, thinking in ((messages, thinking) for messages in conversations for thinking in ends):
        try:
            plain, switched = run(messages, True), run(messages, True, thinking)
        except EdgeVLMError:
            continue
        whole, base = plain.endswith(chat.generation), plain.removesuffix(chat.generation)
        ends[thinking].add(switched.removeprefix(base) if whole and switched.startswith(base) else None)
    (on, *more), (off, *others) = ends[True] or {None}, ends[False] or {None}
    if more or others or on is None or off is None or on == off:
        return chat
    return replace(chat, thinking=on, direct=off)
