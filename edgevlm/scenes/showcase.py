"""Pictures for people: `python -m edgevlm.scenes.showcase` writes the demo's picture and the page's contact sheet."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from edgevlm.scenes.catalogue import ASSETS, COLOURS, NOUN_INDEX, NOUNS, SIGN
from edgevlm.scenes.generator import compose, scenes
from edgevlm.scenes.plan import Item
from edgevlm.scenes.scene import Scene
from edgevlm.scenes.stream import Stream

DEMO = ASSETS / "demo.png"
# A layout of the test split, and a stream that no split uses.
DEMO_KEY, DEMO_SIZE = 8, (512, 384)
DEMO_THINGS = (
    ("tree", None, 0.3),
    ("house", None, 0.3),
    ("car", "red", 0.22),
    ("dog", None, 0.17),
    ("balloon", "yellow", 0.17),
    ("balloon", "yellow", 0.17),
    ("balloon", "yellow", 0.17),
    ("bird", "blue", 0.12),
)
SHEET_ROWS, SHEET_COLUMNS, SHEET_CELL = 3, 6, 168


def demo_scene(key: int = DEMO_KEY) -> Scene:
    """Eight objects, three of a kind among them, and a sign."""
    items = []
    for name, colour, size in DEMO_THINGS:
        noun = NOUNS[NOUN_INDEX[name]]
        items.append(Item(noun, colour, COLOURS[colour] if colour else None, size))
    items.append(Item(SIGN, None, (34, 84, 190), 0.13, text="PARK", font="sans-bold", ink=(250, 250, 248), framed=True))
    return compose(Stream(3, key), "test", 0, key, DEMO_SIZE, items)


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
    contact_sheet().save(docs / "scenes.jpg", quality=88, optimize=True)
