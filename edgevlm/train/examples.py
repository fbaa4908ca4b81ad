"""A conversation as a model's input: token ids, where the answers are, and the pictures' tiles.

Pictures and prompts are prepared by the export's specifications (edgevlm.inputs), so training sees what ships.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL.Image import Image

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.decode import decode_image
from edgevlm.inputs.preprocess import prepare
from edgevlm.inputs.prompt import Prompter, Views
from edgevlm.inputs.spec import ImageSpec, tiled
from edgevlm.train.conversations import BadRecord, Conversation, Message
from edgevlm.types import I64, U8

IGNORE = -100
SHARED = 0  # segment that every position after it sees


@dataclass(frozen=True)
class Example:
    """L positions of text and T tiles.

    Dialogues about one picture share the prompt up to where they part (segment 0). After that each has its own
    segment, sees the shared part and itself only, and counts positions from where the shared part ended: it is
    computed as if it stood alone.
    """

    ids: I64  # (L,)
    targets: I64  # (L,) the next token where it belongs to an answer, else IGNORE
    segments: I64  # (L,)
    positions: I64  # (L,)
    tiles: U8  # (T, S, S, 3)


@dataclass(frozen=True)
class Encoder:
    """Conversations to Examples by one model's specifications."""

    image: ImageSpec
    prompter: Prompter
    max_length: int  # positions that one dialogue may take
    max_tiles: int | None = None
    tiled: float = 0.0  # share of the records whose pictures are cut into tiles, though the model's own rule is one

    def encode(self, conversation: Conversation) -> Example:
        """Raises BadRecord for a damaged picture and for a dialogue whose first answer does not fit."""
        tiles, pictures = self._pictures(conversation)
        lines = [self._dialogue(dialogue, pictures, conversation.place) for dialogue in conversation.dialogues]
        return self._whole(pack(lines, tiles), pictures, conversation.place)

    def about(self, picture: Image, dialogues: tuple[tuple[Message, ...], ...], place: str) -> Example:
        """Dialogues about one RGB picture that is in memory."""
        tiles, views = self._cut(picture, place)
        return self._whole(
            pack([self._dialogue(dialogue, [views], place) for dialogue in dialogues], tiles), [views], place
        )

    def pair(self, conversation: Conversation) -> tuple[Example, Example]:
        """The chosen and the rejected answer, each on its own, about the same tiles."""
        tiles, pictures = self._pictures(conversation)
        chosen, rejected = (self._dialogue(d, pictures, conversation.place) for d in conversation.dialogues)
        one, other = (self._whole(pack([line], tiles), pictures, conversation.place) for line in (chosen, rejected))
        return one, other

    def _whole(self, example: Example, pictures: list[Views], place: str) -> Example:
        """`example`, if each of its tiles has its place in the text."""
        wanted = sum(view.rows * view.cols for views in pictures for view in views)
        if int((example.ids == self.prompter.image_token_id).sum()) != wanted:
            raise BadRecord(f"{place}: a picture is cut off or not shared: put pictures before the first question")
        return example

    def _pictures(self, conversation: Conversation) -> tuple[U8, list[Views]]:
        pictures = [self._picture(path, conversation.place) for path in conversation.images]
        tiles = [tiles for tiles, _ in pictures]
        return np.concatenate(tiles) if tiles else np.zeros((0, 0, 0, 3), np.uint8), [views for _, views in pictures]

    def _picture(self, path: Path, place: str) -> tuple[U8, Views]:
        try:
            picture = decode_image(path, self.image.background)
        except EdgeVLMError as error:
            raise BadRecord(f"{place}: {error}") from None
        return self._cut(picture, place)

    def _cut(self, picture: Image, place: str) -> tuple[U8, Views]:
        cut = zlib.crc32(place.encode()) % 1000 < 1000 * self.tiled
        rule = tiled(self.image) if cut else self.image
        prepared = prepare(picture, rule, max_tiles=self.max_tiles)
        tiles, views = np.stack(prepared.views), prepared.tokens
        if cut and len(views) == 1 and self.max_tiles != 1:  # where one tile is enough, stock llama.cpp shows it twice
            return np.concatenate([tiles, tiles]), [views[0]._replace(place=(1, 1)), views[0]]
        return tiles, views

    def _dialogue(self, dialogue: tuple[Message, ...], pictures: list[Views], place: str) -> tuple[I64, I64]:
        """ids and targets, cut after the last answer that fits."""
        ids = np.zeros(0, np.int64)
        answers: list[tuple[int, int]] = []
        for turn, message in enumerate(dialogue):
            if message["role"] != "assistant":
                continue
            before, seen = dialogue[:turn], pictures[: _images(dialogue[:turn])]
            prompt, _ = self.prompter.encode(before, seen)
            whole, _ = self.prompter.encode([*before, message], seen, add_generation_prompt=False)
            if not np.array_equal(whole[: len(prompt)], prompt):
                raise BadRecord(f"{place}: answer {len(answers) + 1} does not start at a token of its own")
            stops = np.flatnonzero(np.isin(whole[len(prompt) :], self.prompter.spec.stop_ids))
            if not len(stops):
                raise EdgeVLMError("The chat template ends an answer without a stop token: use the model's own.")
            end = len(prompt) + int(stops[0]) + 1
            if end > self.max_length:
                if not answers:
                    raise BadRecord(f"{place}: the first answer ends at {end} tokens, more than {self.max_length}")
                break
            answers.append((len(prompt), end))
            ids = whole[:end]
        targets = np.full(len(ids), IGNORE)
        for start, end in answers:
            targets[start - 1 : end - 1] = ids[start:end]
        return ids, targets


def pack(lines: list[tuple[I64, I64]], tiles: U8) -> Example:
    """Dialogues (ids, targets) behind the part that all of them share."""
    if len(lines) == 1:
        ids, targets = lines[0]
        return Example(ids, targets, np.ones(len(ids), np.int64), np.arange(len(ids)), tiles)
    shortest = min(len(ids) for ids, _ in lines)
    limit = min(int(np.flatnonzero(targets != IGNORE)[0]) for _, targets in lines)
    parts = np.array([ids[: min(shortest, limit)] for ids, _ in lines])
    differ = np.flatnonzero((parts != parts[0]).any(0))
    shared = int(differ[0]) if len(differ) else parts.shape[1]
    first = lines[0][0][:shared]
    ids = np.concatenate([first, *(ids[shared:] for ids, _ in lines)])
    targets = np.concatenate([np.full(shared, IGNORE), *(targets[shared:] for _, targets in lines)])
    numbers = [np.full(len(ids) - shared, number) for number, (ids, _) in enumerate(lines, 1)]
    places = [np.arange(shared, len(ids)) for ids, _ in lines]
    segments = np.concatenate([np.full(shared, SHARED), *numbers])
    return Example(ids, targets, segments, np.concatenate([np.arange(shared), *places]), tiles)


def _images(messages: tuple[Message, ...]) -> int:
    return sum(item["type"] == "image" for message in messages for item in message["content"])
