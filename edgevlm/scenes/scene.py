"""A scene: a picture with its complete ground truth."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from edgevlm.scenes.catalogue import NOUN_INDEX, NOUNS, SIGN, Noun, Split
from edgevlm.types import U8

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom are the first that are outside."""


@dataclass(frozen=True)
class SceneObject:
    name: str  # a noun of the catalogue, or "sign"
    colour: str | None  # None where the noun has colours of its own
    box: Box
    text: str = ""  # of a sign
    letters: tuple[tuple[str, Box], ...] = ()  # each character of it and where its ink is

    @property
    def noun(self) -> Noun:
        return (*NOUNS, SIGN)[NOUN_INDEX[self.name]]

    @property
    def centre(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Scene:
    split: Split
    seed: int
    index: int
    picture: Image.Image  # RGB
    objects: tuple[SceneObject, ...]  # none overlaps another
    owners: U8  # (height, width): 0 is background, n is objects[n - 1]

    def fraction(self, box: Box) -> tuple[float, float, float, float]:
        """The box in 0..1 of the picture's width and height."""
        width, height = self.picture.size
        return box[0] / width, box[1] / height, box[2] / width, box[3] / height
