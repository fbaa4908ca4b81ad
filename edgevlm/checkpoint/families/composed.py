"""What a family says about models that are written in its layout: `edgevlm compose` joins two halves to one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

IMAGE, END = "<image>", "<end_of_utterance>"
# Of every composed model, after its bos token.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclass(frozen=True)
class Composed:
    """A layout by the names of transformers' classes, and what its files say beside what the halves bring.

    settings: fields of the config from (patches per side of a view, patches per side of an image token).
    images, processor: preprocessor_config.json beside the usual fields, and processor_config.json, from (pixels per
    side of a view, its image tokens, tiles of a picture's longest edge).
    fits: whether the layout gives every patch of so many per side a position of its own.
    """

    projectors: tuple[str, ...]
    config: str
    vision: str
    model: str
    settings: Callable[[int, int], dict[str, Any]]
    images: Callable[[int, int, int], dict[str, Any]]
    processor: Callable[[int, int, int], dict[str, Any]]
    tokens: tuple[str, ...] = ()  # special tokens beside IMAGE and END
    grid: int = 0  # the most tiles per side that get a token each; 0: whole pictures only
    fits: Callable[[int], bool] = lambda side: True
