"""Batches of generated pictures with their labels and questions, by number: a stopped run goes on where it was."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from multiprocessing import get_context
from typing import NamedTuple, TypeVar

import numpy as np

from edgevlm.inputs.preprocess import preprocess
from edgevlm.inputs.spec import ImageSpec
from edgevlm.scenes.ask import ask
from edgevlm.scenes.crowd import make_crowd, make_mixture, make_sign, make_signs
from edgevlm.scenes.generator import make_scene
from edgevlm.scenes.question import Question
from edgevlm.scenes.scene import Scene
from edgevlm.train.examples import Encoder, Example
from edgevlm.train.models import open_source
from edgevlm.train.shipped.heads import Labels, scene_labels
from edgevlm.types import U8

T = TypeVar("T")
Maker = Callable[[int, int], Scene]  # of a seed and a number
_SCENE: Maker = partial(make_scene, "train")
CROWDED: tuple[Maker, ...] = (_SCENE, make_crowd)
WRITTEN: tuple[Maker, ...] = (_SCENE, make_mixture, make_crowd, *[make_signs] * 5)
HELD_OUT: tuple[Maker, ...] = (partial(make_scene, "val"),)
_TURN = 16  # batches that are drawn at once
_ROUNDS = 3
_MANY = 5  # of a kind
_TRIES = 64  # scenes until one shows many: they are a quarter
_EXISTENCE = 0.3  # of the questions whether something is there, which are most and are learnt first


@dataclass(frozen=True)
class Pictures:
    """Batch n: uint8 tiles (B, S, S, 3), drawn by the makers of `mix` in turn, and their labels."""

    image: ImageSpec
    side: int  # patches
    scale: int
    size: int
    seed: int
    mix: tuple[Maker, ...]

    def __call__(self, number: int) -> tuple[U8, list[Labels]]:
        tiles, labels = [], []
        for index in range(number * self.size, (number + 1) * self.size):
            scene = self.mix[index % len(self.mix)](self.seed, index)
            tiles.append(preprocess(np.asarray(scene.picture), self.image, max_tiles=1)[0])
            labels.append(scene_labels(scene, self.side, self.scale))
        return np.stack(tiles), labels


class Asked(NamedTuple):
    """A picture of the train split with what is asked about it."""

    example: Example
    skills: tuple[str, ...]  # of segments 1, 2, ...
    labels: Labels


@dataclass(frozen=True)
class Questions:
    """Batch n of pictures with several rounds of questions each.

    Every other one is a mixture of kinds; of the rest, more have a sign or a crowd than Scenes' own. With `drills`,
    every other batch is of that many pictures and asks for one thing alone: in turn a sign's text, and counts.
    """

    model: str
    side: int
    scale: int
    size: int
    seed: int
    drills: int = 0

    @cached_property
    def _encoder(self) -> Encoder:
        return open_source(self.model).encoder(max_tiles=1)

    def __call__(self, number: int) -> list[Asked]:
        if self.drills and number % 2:
            drill = self._sign if number % 4 == 1 else self._many
            return [drill(index) for index in range(number * self.drills, (number + 1) * self.drills)]
        return [self._picture(index) for index in range(number * self.size, (number + 1) * self.size)]

    def _sign(self, index: int) -> Asked:
        scene = make_sign(self.seed, index)
        return self._asked(scene, [question for question in ask(scene) if question.skill == "text"], index)

    def _many(self, index: int) -> Asked:
        scenes = (make_scene("train", self.seed, number) for number in count(_TRIES * index))
        scene = make_mixture(self.seed, index) if index % 4 == 3 else next(s for s in scenes if _most(s) >= _MANY)
        asked = {question.question: question for question in ask(scene, _ROUNDS) if question.skill == "count"}
        return self._asked(scene, list(asked.values()), index)

    def _picture(self, index: int) -> Asked:
        if index % 2:
            scene = make_mixture(self.seed, index)
        elif not _rich(scene := make_scene("train", self.seed, 2 * index)):
            scene = make_scene("train", self.seed, 2 * index + 1)
        asked = [question for question in ask(scene, _ROUNDS) if question.skill != "existence" or _kept(question.id)]
        return self._asked(scene, asked, index)

    def _asked(self, scene: Scene, asked: list[Question], index: int) -> Asked:
        dialogues = tuple(
            (
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.question}]},
                {"role": "assistant", "content": [{"type": "text", "text": question.answer}]},
            )
            for question in asked
        )
        example = self._encoder.about(scene.picture, dialogues, f"picture {index}")
        return Asked(example, tuple(q.skill for q in asked), scene_labels(scene, self.side, self.scale))


def _rich(scene: Scene) -> bool:
    return any(item.text for item in scene.objects) or _most(scene) > _MANY


def _most(scene: Scene) -> int:
    return max(Counter(item.name for item in scene.objects).values())


def _kept(name: str) -> bool:
    return zlib.crc32(name.encode()) % 1000 < 1000 * _EXISTENCE


def stream(batches: Callable[[int], T], start: int, end: int, workers: int) -> Iterator[T]:
    """Drawn in turns with training: on a small machine, drawing beside it halves the speed of both."""
    if workers == 0:
        yield from map(batches, range(start, end))
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for first in range(start, end, _TURN):
            yield from list(pool.map(batches, range(first, min(first + _TURN, end))))
