"""What a chat template does with a system message that is not the first: some leave it out, some refuse it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.render import Picture, render
from edgevlm.inputs.spec import Chat


def with_later_system(chat: Chat, run: Callable[..., str], conversation: Sequence[Mapping[str, Any]]) -> Chat:
    """The format, which takes no such message where the template does not write it as other ones.

    run: what the template makes of a conversation for which an answer is asked. conversation: texts alone, with a
    system message behind another one.
    """
    if "system" not in chat.roles:
        return chat
    try:
        written = "".join(piece.text for piece in render(chat, conversation, 0) if not isinstance(piece, Picture))
        return replace(chat, system_first=written != run(conversation, True))
    except EdgeVLMError:
        return replace(chat, system_first=True)
