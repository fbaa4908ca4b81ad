"""Batches of generated pictures with their labels and questions, by number, so that a stopped run can resume."""

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
_MANY = 5  # objects of one kind
_TRIES = 64  # scenes to search for one with many objects of a kind; a quarter have them
_EXISTENCE = 0.3  # share of the existence questions that is kept: they are the most frequent and the easiest


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


class LabelledExample(NamedTuple):
    """A picture of the train split with its questions, answers and labels."""

    example: Example
    skills: tuple[str, ...]  # of segments 1, 2, ...
    labels: Labels


@dataclass(frozen=True)
class Questions:
    """Batch n of pictures with several rounds of questions each.

    Every other picture is a mixture of kinds; the rest have a sign or a crowd more often than Scenes' own. With
    `drills`, every other batch has that many pictures and one kind of question: a sign's text and counts, in turn.
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

    def __call__(self, number: int) -> list[LabelledExample]:
        if self.drills and number % 2:
            drill = self._sign if number % 4 == 1 else self._many
            return [drill(index) for index in range(number * self.drills, (number + 1) * self.drills)]
        return [self._picture(index) for index in range(number * self.size, (number + 1) * self.size)]

    def _sign(self, index: int) -> LabelledExample:
        scene = make_sign(self.seed, index)
        return self._example(scene, [question for question in ask(scene) if question.skill == "text"], index)

    def _many(self, index: int) -> LabelledExample:
        scenes = (make_scene("train", self.seed, number) for number in count(_TRIES * index))
        scene = make_mixture(self.seed, index) if index % 4 == 3 else next(s for s in scenes if _most(s) >= _MANY)
        counts = {question.question: question for question in ask(scene, _ROUNDS) if question.skill == "count"}
        return self._example(scene, list(counts.values()), index)

    def _picture(self, index: int) -> LabelledExample:
        if index % 2:
            scene = make_mixture(self.seed, index)
        elif not _rich(scene := make_scene("train", self.seed, 2 * index)):
            scene = make_scene("train", self.seed, 2 * index + 1)
        questions = [q for q in ask(scene, _ROUNDS) if q.skill != "existence" or _kept(q.id)]
        return self._example(scene, questions, index)

    def _example(self, scene: Scene, questions: list[Question], index: int) -> LabelledExample:
        dialogues = tuple(
            (
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.question}]},
                {"role": "assistant", "content": [{"type": "text", "text": question.answer}]},
            )
            for question in questions
        )
        example = self._encoder.about(scene.picture, dialogues, f"picture {index}")
        return LabelledExample(example, tuple(q.skill for q in questions), scene_labels(scene, self.side, self.scale))


def _rich(scene: Scene) -> bool:
    return any(item.text for item in scene.objects) or _most(scene) > _MANY


def _most(scene: Scene) -> int:
    return max(Counter(item.name for item in scene.objects).values())


def _kept(name: str) -> bool:
    return zlib.crc32(name.encode()) % 1000 < 1000 * _EXISTENCE


def stream(batches: Callable[[int], T], start: int, end: int, workers: int) -> Iterator[T]:
    """Batches `start` to `end`, drawn while training waits: on a small machine, doing both at once is slower."""
    if workers == 0:
        yield from map(batches, range(start, end))
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for first in range(start, end, _TURN):
            yield from list(pool.map(batches, range(first, min(first + _TURN, end))))
