"""What was said before: a client sends a conversation's text back, and its answers become the tokens they were made of.

Then the decoder that holds the conversation need not read it again.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from edgevlm.generate.answer import Answer
from edgevlm.generate.chat import said_of
from edgevlm.inputs.prompt import Prompter
from edgevlm.inputs.render import Said

MOST = 512  # answers that are remembered

Chain = tuple[bytes, ...]


def chain_of(conversation: Sequence[Mapping[str, Any]]) -> Chain:
    """A digest for each message, of it and all before it. Equal ones at the same place: equal beginnings."""
    chain, before = list[bytes](), b""
    for message in conversation:
        digest = hashlib.sha256(before + message["role"].encode())
        content: Any = message["content"]
        items: list[dict[str, Any]] = [{"text": content}] if isinstance(content, str) else content
        for item in items:
            picture = item.get("image")
            if picture is None:
                value, more = item["text"].encode(), b"text"
            else:
                value, more = picture.content, b"image %d" % (picture.max_tiles or 0)
            digest.update(b"\0%s %d\0" % (more, len(value)) + hashlib.sha256(value).digest())
        before = digest.digest()
        chain.append(before)
    return tuple(chain)


class SaidBefore:
    """The answers of one server, the latest of them. Any thread may use it."""

    def __init__(self, most: int = MOST) -> None:
        self._most, self._lock = most, threading.Lock()
        self._answers: OrderedDict[tuple[bytes, str], Said] = OrderedDict()

    def note(self, chain: Chain, prompter: Prompter, answer: Answer) -> None:
        """chain: of the conversation that was answered."""
        with self._lock:
            self._answers[chain[-1], answer.text] = said_of(prompter, answer)
            if len(self._answers) > self._most:
                self._answers.popitem(last=False)

    def restore(self, conversation: list[dict[str, Any]], chain: Chain) -> list[dict[str, Any]]:
        """The conversation with its answers in tokens, where they are known."""
        found = list(conversation)
        with self._lock:
            for place, message in enumerate(conversation):
                text = message["content"]
                if place and message["role"] == "assistant" and isinstance(text, str):
                    said = self._answers.get((chain[place - 1], text))
                    found[place] = message if said is None else {**message, "content": said}
        return found
