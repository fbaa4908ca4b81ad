"""The switch of a chat template that tells a model to think before it answers, or not to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.render import takes
from edgevlm.inputs.spec import Chat

MOST_MARK = 64  # characters behind a message


def with_switch(
    chat: Chat, run: Callable[..., str], conversations: Sequence[Any], holds: Callable[[Chat, bool], bool]
) -> Chat:
    """The format with what asks for an answer with and without thinking, where the template is told by a switch.

    run: what the template makes of a conversation, whether an answer is asked for, and the switch. This may change the
    end of a prompt, and put a mark behind each of the user's messages where the model is not to think, or one into the
    system message where it is.
    holds: whether a format writes all conversations as the template does with the switch turned on, or off.
    """
    first = next((messages for messages in conversations if takes(chat, messages)), None)
    if first is None:
        return chat
    try:
        plain, switched = run(first, True), [run(first, True, thinking) for thinking in (True, False)]
    except EdgeVLMError:
        return chat
    for made in chain(_candidates(chat, plain, *switched), _at_the_start(chat, plain, *switched)):
        try:
            if holds(made, True) and holds(made, False):
                return made
        except EdgeVLMError:
            return chat
    return chat


def _candidates(chat: Chat, plain: str, on: str, off: str) -> Iterator[Chat]:
    """Every way to cut the ends of a question, as it is and with the switch turned on and off."""
    close, base = chat.roles["user"].close, plain.removesuffix(chat.roles["user"].close + chat.generation)
    if on == off or not (on.startswith(base + close) and off.startswith(base)):
        return
    end = off.removeprefix(base)
    for size in range(min(len(end), MOST_MARK) + 1):
        mark, rest = end[:size], end[size:]
        if rest.startswith(close):
            yield replace(
                chat, thinking=on.removeprefix(base + close), direct=rest.removeprefix(close), direct_mark=mark
            )


def _at_the_start(chat: Chat, plain: str, on: str, off: str) -> Iterator[Chat]:
    """Every way to cut what stands before a question that the model is to think about: a system message, which begins
    with a mark where the conversation has one of its own."""
    before = chat.prefix + chat.default_system
    question = plain.removeprefix(before).removesuffix(chat.generation)
    start, found, end = on.rpartition(question)
    system = start.removeprefix(chat.prefix)
    if on == off or off != plain or not (found and question and start.startswith(chat.prefix)):
        return
    opening = chat.roles["system"].open_text if "system" in chat.roles else system
    rest = system.removeprefix(opening) if system.startswith(opening) else ""
    for size in range(min(len(rest), MOST_MARK), -1, -1):
        yield replace(chat, thinking=end, direct=chat.generation, thinking_system=system, thinking_mark=rest[:size])
