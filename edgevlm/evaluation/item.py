"""A question of a suite, its answer and its score."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgevlm.inputs.render import Conversation

_MARK = re.compile(r"(<image \d+>)")


@dataclass(frozen=True)
class Picture:
    """key: equal for equal pictures, and names it in messages. load: a path, or the bytes of the file."""

    key: str
    load: Callable[[], Path | bytes] = field(compare=False)


@dataclass(frozen=True)
class Item:
    """One question as the data set has it, its options included."""

    id: str
    pictures: tuple[Picture, ...]
    question: str
    answers: tuple[str, ...]
    skill: str
    data: Mapping[str, Any] = field(default_factory=dict)  # further input of the suite's scorer


@dataclass(frozen=True)
class Scored:
    """score: 0..1. figures: further numbers by name, from which the suite computes its metrics."""

    score: float
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    item: Item
    answer: str
    scored: Scored


@dataclass(frozen=True)
class Suite:
    """How one benchmark is read, prompted and scored."""

    name: str
    layout: str  # of its folder, for error messages
    hub: str | None  # the data set on the Hub with the same questions
    files: tuple[str, ...]  # of the Hub's, patterns
    read: Callable[[Path], list[Item]]
    prompts: Mapping[str, str]  # by kind of question ("" is the default), each with {question}
    max_tokens: int
    score: Callable[[Item, str], Scored]
    metrics: Callable[[list[Result]], dict[str, float]] = lambda results: {}
    skills: tuple[str, ...] = ()  # the order of a report; others follow as they come

    def conversation(self, item: Item, prompt: str | None = None) -> tuple[Conversation, list[Picture]]:
        """The prompt of an item, and its pictures in order. `prompt` replaces the suite's own.

        Pictures that the question names ("<image 2>") take that place; the others come first.
        """
        form = prompt or self.prompts.get(str(item.data.get("kind", "")), self.prompts[""])
        text = form.replace("{question}", item.question)
        named: Mapping[str, int] = item.data.get("named", {})
        content: list[dict[str, str]] = []
        order: list[int] = []
        for piece in _MARK.split(text):
            if piece in named and named[piece] not in order:
                order.append(named[piece])
                content.append({"type": "image"})
            elif piece.strip():
                content.append({"type": "text", "text": piece})
        if not order:
            return text, list(item.pictures)
        rest = [i for i in range(len(item.pictures)) if i not in order]
        content = [{"type": "image"}] * len(rest) + content
        return [{"role": "user", "content": content}], [item.pictures[i] for i in (*rest, *order)]
