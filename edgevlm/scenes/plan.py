"""Chooses the content of a scene before its layout: nouns, colours, texts and sizes."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.scenes.atlas import RGB, fonts
from edgevlm.scenes.catalogue import (
    COLOUR_NAMES,
    COLOURS,
    NOUNS,
    SIGN,
    THEMES,
    Noun,
    Split,
    held_out_pairs,
    pair_allowed,
    text_split,
    words,
)
from edgevlm.scenes.stream import Stream

MAX_COUNT = 10
SMALLEST = 0.11  # longest side of an object, in square roots of the picture's area
# Few, so that turned sprites can be cached; small, so that a square does not look like a diamond.
_TURNS = (-12, -8, -4, 4, 8, 12)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# (board, ink) of signs.
_BOARDS: tuple[tuple[RGB, RGB], ...] = (
    ((250, 250, 248), (24, 24, 28)),
    ((250, 250, 248), (30, 70, 180)),
    ((250, 250, 248), (190, 30, 36)),
    ((250, 214, 40), (24, 24, 28)),
    ((30, 32, 38), (248, 248, 246)),
    ((30, 32, 38), (250, 214, 40)),
    ((34, 84, 190), (250, 250, 248)),
    ((22, 110, 60), (250, 250, 248)),
    ((186, 32, 38), (250, 250, 248)),
    ((240, 226, 196), (84, 50, 26)),
    ((104, 66, 36), (250, 240, 214)),
    ((196, 200, 206), (24, 24, 28)),
)


@dataclass(frozen=True)
class Item:
    """One object to be drawn."""

    noun: Noun
    colour: str | None
    fill: RGB | None  # the colour's own shade here; a sign's board
    size: float  # longest side (a sign: height of its line), in square roots of the picture's area
    turn: int = 0  # degrees, counter-clockwise
    mirrored: bool = False
    text: str = ""
    font: str = ""
    ink: RGB = (0, 0, 0)
    framed: bool = False  # a sign has a border in the colour of its ink


Kind = tuple[Noun, str | None]


def plan(stream: Stream, split: Split) -> list[Item]:
    """What the next scene of `split` shows: one thing, a few, many of a kind, or signs."""
    style = stream.weighted(("single", "few", "many", "signs"), (8, 30, 34, 28))
    nouns = _nouns(stream)
    if style == "single":
        kinds = [_kind(stream, split, nouns)]
    elif style == "many":
        kinds = _many(stream, split, nouns)
    else:
        kinds = _few(stream, split, nouns, stream.between(0, 4) if style == "signs" else stream.between(2, 6))
    if split != "train" and kinds and stream.chance(0.25):
        colour, noun = stream.choice(held_out_pairs(split))
        kinds[0] = (noun, colour)
    texts = _texts(stream, split) if style == "signs" else []
    largest = min(0.55, 0.6 / (len(kinds) + 2.5 * len(texts)) ** 0.5) if kinds else 0.55
    smallest = max(SMALLEST, 0.45 * largest)
    common = stream.uniform(smallest, largest) if stream.chance(0.25 if style != "many" else 0.6) else None
    shades = {kind: _shade(stream, kind[1]) for kind in kinds}
    items = [_item(stream, kind, shades[kind], common or _size(stream, smallest, largest)) for kind in kinds]
    return items + [_sign(stream, text) for text in texts]


def _nouns(stream: Stream) -> tuple[Noun, ...]:
    """Six scenes in ten keep to one theme, so that its nouns are seen together more often than others are."""
    if stream.chance(0.6):
        theme = stream.choice(THEMES)
        return tuple(noun for noun in NOUNS if theme in noun.themes)
    return NOUNS


def _kind(stream: Stream, split: Split, nouns: tuple[Noun, ...]) -> Kind:
    noun = stream.weighted(nouns, [3 if noun.popular else 1 for noun in nouns])
    return noun, _colour(stream, split, noun)


def _colour(stream: Stream, split: Split, noun: Noun) -> str | None:
    return stream.choice([c for c in COLOUR_NAMES if pair_allowed(split, c, noun)]) if noun.coloured else None


def _few(stream: Stream, split: Split, nouns: tuple[Noun, ...], count: int) -> list[Kind]:
    """Mostly different things; now and then the same noun again, in its own colour or in another."""
    kinds: list[Kind] = []
    while len(kinds) < count:
        noun, colour = _kind(stream, split, nouns)
        if kinds and stream.chance(0.2):
            noun, colour = stream.choice(kinds)
            colour = _colour(stream, split, noun) if stream.chance(0.7) else colour
        elif any(noun == other for other, _ in kinds) and stream.chance(0.7):
            continue
        kinds.append((noun, colour))
    return kinds


def _many(stream: Stream, split: Split, nouns: tuple[Noun, ...]) -> list[Kind]:
    """2 to 10 of a kind, each number as likely, and up to 3 other things."""
    count = stream.between(2, MAX_COUNT)
    noun, colour = _kind(stream, split, nouns)
    mixed = stream.chance(0.25)
    kinds: list[Kind] = [(noun, _colour(stream, split, noun) if mixed else colour) for _ in range(count)]
    others = tuple(other for other in nouns if other != noun)
    return kinds + [_kind(stream, split, others) for _ in range(stream.below(4))]


def _shade(stream: Stream, colour: str | None) -> RGB | None:
    if colour is None:
        return None
    red, green, blue = (min(255, max(0, value + stream.between(-9, 9))) for value in COLOURS[colour])
    return red, green, blue


def _size(stream: Stream, smallest: float, largest: float) -> float:
    """Small and large sizes more often than middle ones, so that objects differ clearly."""
    third = (largest - smallest) / 3
    start = smallest + third * stream.weighted((0, 1, 2), (2, 1, 2))
    return stream.uniform(start, start + third)


def _item(stream: Stream, kind: Kind, fill: RGB | None, size: float) -> Item:
    size = max(SMALLEST, size * stream.uniform(0.92, 1.08))
    turn = stream.choice(_TURNS) if stream.chance(0.5) else 0
    return Item(kind[0], kind[1], fill, size, turn, stream.chance(0.5))


def _texts(stream: Stream, split: Split) -> list[str]:
    """A word, a number, or one of each."""
    style = stream.weighted(("word", "number", "both"), (5, 2, 2))
    texts = []
    if style != "number":
        texts.append(_word(stream, split))
    if style != "word":
        texts.append(_number(stream, split))
    return texts


def _word(stream: Stream, split: Split) -> str:
    """An English word of the split; in training, one in three is of random letters, so that a model must read."""
    word = stream.choice(words(split))
    while split == "train" and stream.chance(1 / 3):
        if invented := _invented_once(stream, split):
            word = invented
            break
    return _cased(stream, word)


def _invented_once(stream: Stream, split: Split) -> str:
    """Random letters; empty where they belong to another split, or where upper and lower case look alike."""
    invented = "".join(stream.choice(_LETTERS) for _ in range(stream.between(2, 7))).lower()
    return invented if text_split(invented) == split and set(invented) - set("cosuvwxz") else ""


def _invented(stream: Stream, split: Split) -> str:
    while True:
        if invented := _invented_once(stream, split):
            return invented


def _cased(stream: Stream, word: str) -> str:
    return stream.weighted((word.upper(), word.capitalize(), word), (2, 1, 1))


def _number(stream: Stream, split: Split) -> str:
    """Two to four digits."""
    while True:
        digits = stream.between(2, 4)
        text = str(stream.between(10 ** (digits - 1), 10**digits - 1))
        if text_split(text) == split:
            return text


def _sign(stream: Stream, text: str) -> Item:
    board, ink = stream.choice(_BOARDS)
    size = stream.uniform(0.095, 0.2)
    return Item(SIGN, None, board, size, text=text, font=stream.choice(fonts()), ink=ink, framed=stream.chance(0.5))


def random_item(stream: Stream, split: Split, nouns: tuple[Noun, ...], smallest: float, largest: float) -> Item:
    """Any of `nouns`, each as likely, in any colour that the split may show it in."""
    noun = stream.choice(nouns)
    colour = _colour(stream, split, noun)
    return _item(stream, (noun, colour), _shade(stream, colour), stream.uniform(smallest, largest))


def random_sign(stream: Stream, split: Split) -> Item:
    """A sign of digits, of random letters, each as likely, or of a word."""
    kind = stream.weighted(("number", "letters", "word"), (2, 4, 4))
    if kind == "number":
        return _sign(stream, _number(stream, split))
    return _sign(stream, _word(stream, split) if kind == "word" else _cased(stream, _invented(stream, split)))
