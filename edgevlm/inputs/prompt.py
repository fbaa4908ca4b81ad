"""Conversation and tile grids -> token ids, and token ids -> text (docs/preprocessing.md, section 7).

Needs `tokenizers` and nothing else: the checkpoint's chat template was turned into a PromptSpec at export.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.spec import PromptSpec
from edgevlm.types import Ids

Grid = tuple[int, int]  # rows, columns; (0, 0): the whole picture only
Conversation = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Control:
    """Text of the spec: special tokens count in it."""

    text: str


@dataclass(frozen=True)
class Plain:
    """Text of the user: never anything but text."""

    text: str


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
    found = sum(item["type"] == "image" for _, content in messages for item in content)
    if found != num_images:
        raise EdgeVLMError(
            f"The conversation has {found} image items for {num_images} pictures: give one picture for each."
        )
    return messages


def render(
    spec: PromptSpec, conversation: Conversation, num_images: int, *, add_generation_prompt: bool = True
) -> Iterator[Control | Plain | Picture]:
    """The conversation in the checkpoint's chat format, image places not yet filled."""
    yield Control(spec.prefix)
    index = 0
    for role, content in messages_of(conversation, num_images):
        if role not in spec.roles:
            raise EdgeVLMError(f"The role '{role}' is unknown to this model: use {', '.join(sorted(spec.roles))}.")
        around = spec.roles[role]
        yield Control(around.open_image if content[0]["type"] == "image" else around.open_text)
        for item in content:
            if item["type"] == "image":
                yield Picture(index)
                index += 1
            else:
                yield Plain(item["text"])
        yield Control(around.close)
    if add_generation_prompt:
        yield Control(spec.generation)


class Prompter:
    """Builds prompts and reads answers with one bundle's tokenizer."""

    def __init__(self, spec: PromptSpec, tokenizer_json: Path | str) -> None:
        self.spec = spec
        self._tokenizer = load_tokenizer(Path(tokenizer_json))
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token.content: int(id_) for id_, token in added.items() if token.special}
        if self._special.get(spec.image_token) != spec.image_token_id:
            raise EdgeVLMError(
                f"'{tokenizer_json}' does not have '{spec.image_token}' as the special token "
                f"{spec.image_token_id}: it belongs to another model; export the bundle again."
            )
        longest_first = sorted(self._special, key=len, reverse=True)
        self._splitter = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._silent = frozenset(self._special.values())

    @property
    def image_token_id(self) -> int:
        """The id whose positions image features replace, in order."""
        return self.spec.image_token_id

    def encode(
        self, conversation: Conversation, grids: Sequence[Grid] = (), *, add_generation_prompt: bool = True
    ) -> Ids:
        """Token ids int64 (n,) of a question, or of messages [{"role", "content"}], with a grid per image.

        Equal to Hugging Face's processor and chat template, but for special tokens spelled out in the user's
        text: here they are text, so that a question can neither end its turn nor add an image.
        """
        ids: list[int] = []
        pending: list[str] = []  # text up to the next special token is encoded in one piece, whoever wrote it

        def flush() -> None:
            text = "".join(pending)
            pending.clear()
            if text:
                ids.extend(self._tokenizer.encode(text, add_special_tokens=False).ids)

        def control(text: str) -> None:
            for number, piece in enumerate(self._splitter.split(text)):
                if number % 2:
                    flush()
                    ids.append(self._special[piece])
                else:
                    pending.append(piece)

        def picture(opening: str) -> None:
            control(opening)
            flush()
            ids.extend([spec.image_token_id] * spec.image_tokens)

        spec = self.spec
        for piece in render(spec, conversation, len(grids), add_generation_prompt=add_generation_prompt):
            if isinstance(piece, Control):
                control(piece.text)
            elif isinstance(piece, Plain):
                pending.append(piece.text)
            else:
                rows, cols = _grid(grids[piece.index])
                for row in range(1, rows + 1):
                    for col in range(1, cols + 1):
                        picture(spec.tile_open.replace("{row}", str(row)).replace("{col}", str(col)))
                    control(spec.row_close)
                picture(spec.global_open if rows else spec.single_open)
                control(spec.image_close)
        flush()
        return np.array(ids, dtype=np.int64)

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of token ids, special tokens left out; bytes that are not UTF-8 read as U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """What one token adds to the answer's UTF-8: nothing, for special and unknown tokens."""
        token_id = int(token_id)
        token = None if token_id < 0 or token_id in self._silent else self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes(_BYTE_OF[char] for char in token)
        except KeyError:  # an added token, stored as itself
            return token.encode("utf-8")


class StreamDecoder:
    """Text as tokens come. The pieces join to `Prompter.decode` of all; none holds half a character."""

    def __init__(self, prompter: Prompter) -> None:
        self._prompter = prompter
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes; often empty."""
        return self._decoder.decode(self._prompter.token_bytes(token_id))

    def finish(self) -> str:
        """The rest: U+FFFD if the answer stopped inside a character, else nothing."""
        return self._decoder.decode(b"", final=True)


def load_tokenizer(path: Path) -> Tokenizer:
    """A byte-level tokenizer.json that reads special tokens in its input as text."""
    if not path.is_file():
        raise EdgeVLMError(f"'{path}' is missing: a model needs its tokenizer.json; take the folder or bundle anew.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as e:  # the binding raises bare Exception
        raise EdgeVLMError(f"'{path}' is not a tokenizer.json ({e}): take the file anew.") from e
    if not isinstance(tokenizer.decoder, decoders.ByteLevel):
        raise EdgeVLMError(
            f"'{path}' has the decoder {type(tokenizer.decoder).__name__}, expected ByteLevel: "
            "only byte-level BPE tokenizers are supported."
        )
    # Files saved after training often keep these two; a prompt is never cut or padded here.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _is_item(item: Any) -> bool:
    if not isinstance(item, Mapping):
        return False
    if item.get("type") == "image":
        return True
    text = item.get("text")
    if item.get("type") != "text" or not isinstance(text, str):
        return False
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise EdgeVLMError("The question is not valid Unicode text: type it again in UTF-8.")
    return True


def _grid(grid: Grid) -> Grid:
    rows, cols = int(grid[0]), int(grid[1])
    if (rows, cols) != (0, 0) and min(rows, cols) < 1:
        raise EdgeVLMError(f"The tile grid {rows} x {cols} is none: expected 0 x 0, or 1 x 1 and more.")
    return rows, cols


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's printable stand-in for each byte (GPT-2's table), reversed."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
