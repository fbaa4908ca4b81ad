"""Sprites, glyphs and textures as pictures, read once from the package's atlas."""

from __future__ import annotations

import json
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from edgevlm.scenes.catalogue import ASSETS, Noun

RGB = tuple[int, int, int]


class Cut(NamedTuple):
    sprite: Image.Image  # RGBA
    mask: Image.Image | None  # L: where the sprite takes the object's colour


class Glyph(NamedTuple):
    """A character: its picture's box in the sheet, where that goes from the pen and the baseline, and the advance."""

    left: int
    top: int
    width: int
    height: int
    x: int
    y: int
    advance: int


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((ASSETS / "atlas.json").read_text(encoding="ascii"))
    return table


@cache
def _sheet(name: str, mode: str) -> Image.Image:
    with Image.open(ASSETS / name) as picture:
        return picture.convert(mode)


@cache
def _sprite(noun: str) -> Image.Image:
    left, top, width, height = _table()["sprites"][noun]
    return _sheet("sprites.png", "RGBA").crop((left, top, left + width, top + height))


@cache
def _mask(noun: str) -> Image.Image:
    left, top, width, height = _table()["sprites"][noun]
    return _sheet("masks.png", "L").crop((left, top, left + width, top + height))


@cache
def mean_colour(noun: str) -> RGB:
    """Mean colour of a noun's own pixels, from which a background must differ."""
    pixels = np.asarray(_sprite(noun)).reshape(-1, 4)
    red, green, blue = pixels[pixels[:, 3] > 128, :3].mean(0)
    return int(red), int(green), int(blue)


@lru_cache(maxsize=1024)  # all that plan.py asks for: 30 MB
def cut_sprite(noun: Noun, turn: int, mirrored: bool) -> Cut:
    """The noun at the atlas's own size, turned by `turn` degrees counter-clockwise, trimmed to its visible pixels."""
    sprite, mask = _sprite(noun.name), _mask(noun.name) if noun.coloured else None
    if mirrored:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mask else None
    if turn:
        sprite = sprite.rotate(turn, Image.Resampling.BICUBIC, expand=True)
        mask = mask.rotate(turn, Image.Resampling.BILINEAR, expand=True) if mask else None
        bounds = sprite.getchannel("A").point(_VISIBLE).getbbox()
        sprite, mask = sprite.crop(bounds), mask.crop(bounds) if mask else None
    return Cut(sprite, mask)


def paint_sprite(cut: Cut, fill: RGB | None, size: tuple[int, int]) -> Image.Image:
    """The sprite as RGBA of that size; `fill` is its main colour, for a noun that can have any."""
    sprite = cut.sprite.resize(size, Image.Resampling.BICUBIC)
    if cut.mask is None or fill is None:
        return sprite
    return _tint(sprite, cut.mask.resize(size, Image.Resampling.BILINEAR), fill)


_VISIBLE = [0] * 64 + [255] * 192


def _tint(sprite: Image.Image, mask: Image.Image, fill: RGB) -> Image.Image:
    """Replace the grey under the mask by the fill, lighter and darker as the grey is; integers throughout."""
    pixels = np.asarray(sprite).astype(np.int32)
    share = np.asarray(mask).astype(np.int32)[..., None]
    shade = pixels[..., :3] - 128
    painted = np.clip(np.array(fill, np.int32) + shade, 0, 255)
    pixels[..., :3] = (painted * share + pixels[..., :3] * (255 - share) + 127) // 255
    return Image.fromarray(pixels.astype(np.uint8))


def fonts() -> tuple[str, ...]:
    return tuple(_table()["glyphs"])


@cache
def glyphs(font: str) -> dict[str, Glyph]:
    return {character: Glyph(*row) for character, row in _table()["glyphs"][font].items()}


@cache
def _line(font: str) -> tuple[int, int]:
    """(highest y, lowest y) of capitals, digits and small letters from the baseline, in the sheet's pixels."""
    rows = glyphs(font).values()
    return min(g.y for g in rows), max(g.y + g.height for g in rows)


def cut_text(text: str, font: str) -> tuple[Image.Image, tuple[tuple[int, int, int, int], ...], int]:
    """(coverage, boxes, line): the text as an L picture trimmed to its ink, at the sheet's own size.

    boxes: left, top, right, bottom of each character's ink in it. line: pixels from the highest to the lowest that
    any text of this font reaches, by which different texts are scaled alike.
    """
    sheet, table = _sheet("glyphs.png", "L"), glyphs(font)
    top, bottom = _line(font)
    line = Image.new("L", (sum(table[c].advance for c in text) + 16, bottom - top))
    pen, boxes = 8, []
    for character in text:
        glyph = table[character]
        ink = sheet.crop((glyph.left, glyph.top, glyph.left + glyph.width, glyph.top + glyph.height))
        left, upper = pen + glyph.x, glyph.y - top
        line.paste(255, (left, upper), ink)
        inner = ink.getbbox() or (0, 0, 1, 1)
        boxes.append((left + inner[0], upper + inner[1], left + inner[2], upper + inner[3]))
        pen += glyph.advance
    bounds = line.getbbox() or (0, 0, 1, 1)
    moved = tuple((a - bounds[0], b - bounds[1], c - bounds[0], d - bounds[1]) for a, b, c, d in boxes)
    return line.crop(bounds), moved, bottom - top


def texture_count() -> int:
    return _sheet("textures.png", "RGB").width // _texture_side()


def _texture_side() -> int:
    side: int = _table()["texture"]
    return side


def texture(number: int, box: tuple[float, float, float, float], size: tuple[int, int]) -> Image.Image:
    """Part `box` (0..1) of a photographic texture, enlarged to `size`."""
    side = _texture_side()
    left, top, right, bottom = box
    place = (number + left) * side, top * side, (number + right) * side, bottom * side
    return _sheet("textures.png", "RGB").resize(size, Image.Resampling.BICUBIC, place)
