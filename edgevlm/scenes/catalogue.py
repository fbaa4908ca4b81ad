"""The parts of scenes (nouns, colours, themes, words), and which split each belongs to.

Three things belong to one split each, by rules that anyone can compute again:
- a (colour, noun) pair: `pair_split`. No other split draws it or names it in a question.
- a text on a sign: `text_split`. No other split draws it.
- a layout (layout.py).
Everything else (each noun, each colour) is in every split.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
ASSETS = Path(__file__).parent.parent / "assets" / "scenes"

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 38),
    "orange": (247, 140, 20),
    "yellow": (250, 222, 40),
    "green": (38, 156, 62),
    "blue": (36, 92, 222),
    "purple": (134, 50, 178),
    "pink": (250, 138, 190),
    "brown": (122, 72, 36),
    "black": (34, 34, 38),
    "white": (246, 246, 246),
}
COLOUR_NAMES = tuple(COLOURS)


@dataclass(frozen=True)
class Noun:
    name: str
    plural: str
    themes: tuple[str, ...]
    coloured: bool = False  # drawn in any of COLOURS; the others have colours of their own, which nothing asks for
    glyph: str = ""  # the emoji that the sprite was rendered from; empty for a shape
    popular: bool = False  # three times as frequent


def _noun(name: str, themes: str, glyph: str = "", coloured: bool = False, plural: str = "", popular: int = 0) -> Noun:
    return Noun(name, plural or name + "s", tuple(themes.split()), coloured, glyph, bool(popular))


# The order is fixed: it numbers the classes of training and orders captions.
NOUNS: tuple[Noun, ...] = (
    _noun("circle", "shapes", coloured=True, popular=1),
    _noun("square", "shapes", coloured=True),
    _noun("triangle", "shapes", coloured=True),
    _noun("star", "shapes", coloured=True, popular=1),
    _noun("diamond", "shapes", coloured=True),
    _noun("cross", "shapes", coloured=True, plural="crosses"),
    _noun("heart", "shapes party", coloured=True),
    _noun("ring", "shapes", coloured=True),
    _noun("car", "street", "🚗", True, popular=1),
    _noun("balloon", "party", "🎈", True),
    _noun("umbrella", "clothes street", "☂", True),
    _noun("shirt", "clothes", "👕", True),
    _noun("book", "home", "📕", True, popular=1),
    _noun("tulip", "garden party", "🌷", True),
    _noun("fish", "water", "🐟", True, plural="fish"),
    _noun("bird", "garden street", "🐦", True, popular=1),
    _noun("key", "home", "🔑", True),
    _noun("shoe", "clothes", "👟", True),
    _noun("chair", "home", "🪑", True, popular=1),
    _noun("bell", "home party", "🔔", True),
    _noun("cap", "clothes", "🧢", True),
    _noun("dress", "clothes", "👗", True, plural="dresses"),
    _noun("bucket", "garden home", "🪣", True),
    _noun("teapot", "food home", "🫖", True),
    _noun("dog", "animals", "🐕", popular=1),
    _noun("cat", "animals home", "🐈", popular=1),
    _noun("cow", "animals", "🐄"),
    _noun("pig", "animals", "🐖"),
    _noun("horse", "animals", "🐎"),
    _noun("rabbit", "animals garden", "🐇"),
    _noun("elephant", "animals", "🐘"),
    _noun("lion", "animals", "🦁"),
    _noun("frog", "water garden", "🐸"),
    _noun("turtle", "water", "🐢"),
    _noun("owl", "animals", "🦉"),
    _noun("penguin", "water", "🐧"),
    _noun("bee", "garden", "🐝"),
    _noun("crab", "water", "🦀"),
    _noun("octopus", "water", "🐙", plural="octopuses"),
    _noun("apple", "food", "🍎", popular=1),
    _noun("banana", "food", "🍌"),
    _noun("strawberry", "food", "🍓", plural="strawberries"),
    _noun("carrot", "food garden", "🥕"),
    _noun("pretzel", "food", "🥨"),
    _noun("pizza", "food", "🍕"),
    _noun("burger", "food", "🍔"),
    _noun("cake", "food party", "🎂"),
    _noun("donut", "food", "🍩"),
    _noun("clock", "home", "🕐"),
    _noun("guitar", "party home", "🎸"),
    _noun("camera", "party", "📷"),
    _noun("trophy", "home party", "🏆", plural="trophies"),
    _noun("hammer", "home", "🔨"),
    _noun("rocket", "street", "🚀"),
    _noun("plane", "street", "✈"),
    _noun("boat", "water", "⛵"),
    _noun("train", "street", "🚂"),
    _noun("tree", "garden street", "🌳", popular=1),
    _noun("cactus", "garden", "🌵", plural="cactuses"),
    _noun("mushroom", "garden food", "🍄"),
    _noun("house", "street", "🏠", popular=1),
    _noun("bicycle", "street", "🚲"),
    _noun("crown", "clothes party", "👑"),
    _noun("ball", "party garden", "⚽", popular=1),
)
SIGN = Noun("sign", "signs", ())  # a board with a text
# Things that a person might call by another noun; where one is shown, no question needs the other's absence.
LOOKALIKES: dict[str, tuple[str, ...]] = {
    "circle": ("ball", "clock", "donut", "ring"),
    "ring": ("donut", "circle", "key"),
    "square": ("sign", "book", "camera"),
    "diamond": ("square",),
    "cross": ("plane",),
    "triangle": ("pizza", "boat"),
    "cap": ("umbrella",),
    "ball": ("circle", "balloon"),
    "balloon": ("ball",),
    "cat": ("lion",),
    "crown": ("trophy",),
    "tree": ("cactus",),
    "bird": ("owl", "penguin"),
    "tulip": ("cactus",),
}
THEMES = tuple(dict.fromkeys(theme for noun in NOUNS for theme in noun.themes))
NOUN_INDEX = {noun.name: number for number, noun in enumerate((*NOUNS, SIGN))}
COLOURED = tuple(noun for noun in NOUNS if noun.coloured)
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def pair_split(colour: str, noun: Noun) -> Split | None:
    """The split that alone shows and names this pair; None for the pairs that all splits share (5 of 6)."""
    share = (COLOUR_NAMES.index(colour) + 5 * COLOURED.index(noun)) % 12
    return {0: "test", 6: "val"}.get(share)  # type: ignore[return-value]


def pair_allowed(split: Split, colour: str, noun: Noun) -> bool:
    return pair_split(colour, noun) in (None, split)


def held_out_pairs(split: Split) -> tuple[tuple[str, Noun], ...]:
    """The (colour, noun) pairs of `split` alone; empty for train."""
    return tuple((c, noun) for noun in COLOURED for c in COLOUR_NAMES if pair_split(c, noun) == split)


def text_split(text: str) -> Split:
    """The only split whose signs may show this text, in any case: CRC-32 of the lower-case text, modulo 8."""
    share = zlib.crc32(text.lower().encode("ascii")) % 8
    return "test" if share == 7 else "val" if share == 6 else "train"


@lru_cache(maxsize=4)
def words(split: Split) -> tuple[str, ...]:
    """The English words (lower case) of a split's signs: 2 to 8 letters in train, 2 to 6 elsewhere."""
    listed = (ASSETS / "words.txt").read_text(encoding="ascii").split()
    return tuple(word for word in listed if text_split(word) == split and (split == "train" or len(word) <= 6))
