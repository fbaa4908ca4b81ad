"""Pictures for people: `python -m edgevlm.scenes.showcase` writes them again.

The demo's picture, the samples that the gate and the tests ask about, and the contact sheet of docs/scenes.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from edgevlm.scenes.catalogue import ASSETS, COLOURS, NOUN_INDEX, NOUNS, SIGN, Split
from edgevlm.scenes.generator import compose, scenes
from edgevlm.scenes.plan import Item
from edgevlm.scenes.scene import Scene
from edgevlm.scenes.stream import Stream

DEMO = ASSETS / "demo.png"
SAMPLES = ASSETS.parent / "pictures"
_STREAM = 3  # the first number of these streams' keys, which no split uses


@dataclass(frozen=True)
class Sketch:
    """The content of a picture, without its layout."""

    split: Split  # its layout, pairs of colour and noun, and texts are this split's
    key: int  # of its stream
    size: tuple[int, int]
    things: tuple[tuple[str, str | None, float], ...]  # noun, colour, longest side in roots of the picture's area
    sign: Item | None = None


def _sign(text: str, size: float, board: tuple[int, int, int]) -> Item:
    return Item(SIGN, None, board, size, text=text, font="sans-bold", ink=(250, 250, 248), framed=True)


_DEMO = Sketch(
    "test",
    97,
    (512, 384),
    (
        ("tree", None, 0.3),
        ("house", None, 0.3),
        ("car", "red", 0.22),
        ("dog", None, 0.17),
        *[("balloon", "yellow", 0.17)] * 3,
        ("bird", "blue", 0.12),
    ),
    _sign("PARK", 0.16, (34, 84, 190)),
)
_SAMPLES = {
    "scene-things.png": Sketch(
        "val",
        112,
        (320, 240),
        (("car", "red", 0.34), *[("book", "green", 0.2)] * 3, ("chair", "yellow", 0.34), ("cat", None, 0.28)),
    ),
    "scene-sign.png": Sketch(
        "val",
        114,
        (256, 256),
        (("bicycle", None, 0.4), ("bird", "orange", 0.24), ("umbrella", "purple", 0.36)),
        _sign("STOP", 0.18, (186, 32, 38)),
    ),
    "scene-tall.png": Sketch(
        "val",
        103,
        (192, 320),
        (("car", "blue", 0.4), ("dog", None, 0.32), *[("fish", "orange", 0.25)] * 2, ("tree", None, 0.45)),
    ),
}
SHEET_ROWS, SHEET_COLUMNS, SHEET_CELL = 3, 6, 168


def demo_scene() -> Scene:
    """Eight objects, three of a kind among them, and a sign."""
    return _drawn(_DEMO)


def sample_scenes() -> dict[str, Scene]:
    """The samples by file name: things and a count, a sign, a tall picture."""
    return {name: _drawn(sketch) for name, sketch in _SAMPLES.items()}


def _drawn(sketch: Sketch) -> Scene:
    items = []
    for name, colour, size in sketch.things:
        items.append(Item(NOUNS[NOUN_INDEX[name]], colour, COLOURS[colour] if colour else None, size))
    items += [sketch.sign] if sketch.sign else []
    return compose(Stream(_STREAM, sketch.key), sketch.split, 0, sketch.key, sketch.size, items)


def contact_sheet() -> Image.Image:
    """The first scenes of the test split, each in a square cell."""
    side = SHEET_CELL
    sheet = Image.new("RGB", (SHEET_COLUMNS * side, SHEET_ROWS * side), "white")
    for number, scene in enumerate(scenes("test", 0, SHEET_ROWS * SHEET_COLUMNS)):
        picture = scene.picture.copy()
        picture.thumbnail((side - 8, side - 8), Image.Resampling.LANCZOS)
        row, column = divmod(number, SHEET_COLUMNS)
        left = column * side + (side - picture.width) // 2
        sheet.paste(picture, (left, row * side + (side - picture.height) // 2))
    return sheet


if __name__ == "__main__":
    docs = Path(__file__).parent.parent.parent / "docs"
    demo_scene().picture.save(DEMO, optimize=True)
    for name, scene in sample_scenes().items():
        scene.picture.save(SAMPLES / name, optimize=True)
    contact_sheet().save(docs / "scenes.jpg", quality=88, optimize=True)
