"""Draws scenes: each is a pure function of (split, seed, index, size), the same pixels on every machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from edgevlm.errors import EdgeVLMError
from edgevlm.scenes.atlas import Cut, cut_sprite, cut_text, mean_colour, paint_sprite
from edgevlm.scenes.backgrounds import background
from edgevlm.scenes.catalogue import SIGN, SPLITS, Split
from edgevlm.scenes.layout import place
from edgevlm.scenes.plan import SMALLEST, Item, plan
from edgevlm.scenes.scene import Box, Scene, SceneObject
from edgevlm.scenes.stream import Stream

LONGEST = 256  # pixels of a picture's longest edge, unless a size is given
SMALLEST_SIDE = 48
_RATIOS = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9))
# The last number of a stream's key, so that a new question never changes a picture.
PICTURE, QUESTIONS = 0, 1


def scene_stream(split: Split, seed: int, index: int, purpose: int) -> Stream:
    """Streams of different splits, seeds, indices or purposes never meet."""
    return Stream(2, SPLITS.index(split), seed, index, purpose)


def scenes(split: Split, seed: int, count: int, size: tuple[int, int] | None = None) -> Iterator[Scene]:
    """The first `count` scenes of a split and seed."""
    return (make_scene(split, seed, index, size) for index in range(count))


def size_of(ratio: tuple[int, int]) -> tuple[int, int]:
    """(width, height) in pixels of that shape whose longest edge is LONGEST."""
    return LONGEST * ratio[0] // max(ratio), LONGEST * ratio[1] // max(ratio)


def make_scene(split: Split, seed: int, index: int, size: tuple[int, int] | None = None) -> Scene:
    """Scene number `index` of a split and seed.

    size: (width, height) in pixels; None draws a shape, with LONGEST as its longest edge.
    """
    if size is not None and not (min(size) >= SMALLEST_SIDE and max(size) <= 4096 and max(size) <= 4 * min(size)):
        raise EdgeVLMError(
            f"A scene of {size[0]} x {size[1]} pixels cannot be drawn: choose sides of {SMALLEST_SIDE} to 4096 pixels, "
            "the longer at most four times the shorter."
        )
    stream = scene_stream(split, seed, index, PICTURE)
    ratio = stream.weighted(_RATIOS, (6, 3, 2, 2, 1, 1))
    if size is None:
        size = size_of(ratio)
    items = plan(stream, split)
    return compose(stream, split, seed, index, size, items)


class _Part(NamedTuple):
    """An item with its picture at the atlas's size."""

    item: Item
    cut: Cut
    letters: tuple[Box, ...] = ()
    line: int = 1


def compose(stream: Stream, split: Split, seed: int, index: int, size: tuple[int, int], items: list[Item]) -> Scene:
    """Place and paint the items; where they do not fit they are made smaller, and then the last ones are left out."""
    parts = [_cut(item) for item in items]
    scale = (size[0] * size[1]) ** 0.5
    gap = max(2, round(scale * 0.018))
    shrink = 1.0
    while (boxes := place(stream, split, [_extent(p, scale, shrink, size) for p in parts], size, gap)) is None:
        shrink *= 0.9
        if shrink < 0.5:
            parts, shrink = parts[:-1], 1.0
    picture = background(stream, size, [_main_colour(part.item) for part in parts])
    owners = Image.new("L", size)
    objects = []
    for number, (part, box) in enumerate(zip(parts, boxes, strict=True), 1):
        draw = _draw_sign if part.item.noun is SIGN else _draw_sprite
        objects.append(draw(part, box, picture, owners, number))
    return Scene(split, seed, index, picture, tuple(objects), np.asarray(owners))


def _cut(item: Item) -> _Part:
    if item.noun is SIGN:
        ink, letters, line = cut_text(item.text, item.font)
        return _Part(item, Cut(ink, None), letters, line)
    return _Part(item, cut_sprite(item.noun, item.turn, item.mirrored))


def _main_colour(item: Item) -> tuple[int, int, int]:
    return item.fill or mean_colour(item.noun.name)


def _extent(part: _Part, scale: float, shrink: float, size: tuple[int, int]) -> tuple[float, float]:
    """(width, height) in pixels that a part takes."""
    width, height = part.cut.sprite.size
    if part.item.noun is not SIGN:
        side = max(SMALLEST, part.item.size * shrink) * scale / max(width, height)
        fits = min(size[0] * 0.94 / width, size[1] * 0.94 / height)
        return width * min(side, fits), height * min(side, fits)
    margin = part.line * 0.5
    zoom = max(0.09, part.item.size * shrink) * scale / part.line
    zoom = min(zoom, size[0] * 0.94 / (width + margin), size[1] * 0.94 / (height + margin))
    return (width + margin) * zoom, (height + margin) * zoom


def _draw_sprite(part: _Part, box: Box, picture: Image.Image, owners: Image.Image, number: int) -> SceneObject:
    sprite = paint_sprite(part.cut, part.item.fill, (box[2] - box[0], box[3] - box[1]))
    picture.paste(sprite, box[:2], sprite)
    owners.paste(number, box[:2], sprite.getchannel("A").point(_OPAQUE))
    return SceneObject(part.item.noun.name, part.item.colour, box)


_OPAQUE = [0] * 128 + [255] * 128


def _draw_sign(part: _Part, box: Box, picture: Image.Image, owners: Image.Image, number: int) -> SceneObject:
    left, top, right, bottom = box
    item, (width, height) = part.item, part.cut.sprite.size
    margin = part.line * 0.5
    zoom = (right - left) / (width + margin), (bottom - top) / (height + margin)
    pen = ImageDraw.Draw(picture)
    rim = max(1, (bottom - top) // 22)
    pen.rectangle((left, top, right - 1, bottom - 1), fill=item.fill)
    if item.framed:
        pen.rectangle((left + rim, top + rim, right - 1 - rim, bottom - 1 - rim), outline=item.ink, width=rim)
    size = max(1, round(width * zoom[0])), max(1, round(height * zoom[1]))
    place_x, place_y = left + (right - left - size[0]) // 2, top + (bottom - top - size[1]) // 2
    ink = part.cut.sprite.resize(size, Image.Resampling.BICUBIC)
    picture.paste(item.ink, (place_x, place_y), ink)
    owners.paste(number, box)
    letters = tuple(
        (
            character,
            (
                place_x + int(a * size[0] / width),
                place_y + int(b * size[1] / height),
                place_x + min(size[0], -int(-c * size[0] // width)),
                place_y + min(size[1], -int(-d * size[1] // height)),
            ),
        )
        for character, (a, b, c, d) in zip(item.text, part.letters, strict=True)
    )
    return SceneObject(SIGN.name, None, box, item.text, letters)
