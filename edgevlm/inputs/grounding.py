"""Boxes and points that a model writes in its answers, as pixels of the picture that it was asked about.

How a model writes them (its form, its scale, which comes first) is a `Grounding` of its bundle, in prompt.json. What a
number counts in is the frame that the model sees: the picture after resizing, padding or cropping, before it is cut
into tiles. A view's steps lead back from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from edgevlm.inputs.check import check
from edgevlm.inputs.views import CropTo, PadTo, ResizeTo, Step, View
from edgevlm.io import limits
from edgevlm.io.json import parse_json

FORMS = ("json", "tagged", "tokens")


@dataclass(frozen=True)
class Grounding:
    """How a model writes boxes and points.

    form: "json": objects with "bbox_2d", "box_2d" or "bbox", "point_2d" or "point", and "label" or "category".
    "tagged": numbers between `open` and `close`, four to a box and two to a point, behind a label between `label_open`
    and `label_close`. "tokens": each number between `open` and `close`, four in a row, and the label behind them.
    """

    form: str
    scale: int = 0  # what the far edge of the frame is; 0: numbers are pixels of the frame
    middle: bool = False  # a number is a bin, and means its middle
    y_first: bool = False
    open: str = ""
    close: str = ""
    label_open: str = ""
    label_close: str = ""

    def __post_init__(self) -> None:
        check(self.form in FORMS, "prompt", "grounding.form", " or ".join(FORMS), self.form)
        check(0 <= self.scale <= limits.VIEW_SIDE, "prompt", "grounding.scale", "0 or more", self.scale)
        for name in ("open", "close", "label_open", "label_close"):
            text, most = getattr(self, name), limits.PICTURE_TEXT
            check(len(text) <= most, "prompt", f"grounding.{name}", f"at most {most} characters", text)
        tags = self.form == "json" or (self.open and self.close)
        check(bool(tags) and bool(self.label_open) == bool(self.label_close), "prompt", "grounding", "tags", self)


@dataclass(frozen=True)
class Box:
    """Pixels of the picture, from its upper left corner; x0 < x1 and y0 < y1."""

    label: str
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Point:
    label: str
    x: float
    y: float


@dataclass(frozen=True)
class Frame:
    """What a model sees of a picture, in pixels, and the way back: x there is (x of the frame - left) / wide."""

    width: int
    height: int
    wide: float
    high: float
    left: float
    top: float
    picture: tuple[int, int]  # width and height

    def back(self, x: float, y: float) -> tuple[float, float]:
        return (x - self.left) / self.wide, (y - self.top) / self.high


def frame_of(size: tuple[int, int], views: Sequence[View]) -> Frame:
    """The frame of a picture of that width and height: its view of the whole, or what its tiles are cut from."""
    whole = next((view.steps for view in views if view.place is None), None)
    steps: tuple[Step, ...] = views[0].steps[:-1] if whole is None else whole
    (width, height), wide, high, left, top = size, 1.0, 1.0, 0.0, 0.0
    for step in steps:
        if isinstance(step, ResizeTo):
            across, down = step.width / width, step.height / height
            wide, left, high, top = wide * across, left * across, high * down, top * down
        elif isinstance(step, PadTo):
            left, top = left + step.left, top + step.top
        elif isinstance(step, CropTo):
            left, top = left - step.left, top - step.top
        width, height = step.width, step.height
    return Frame(width, height, wide, high, left, top, size)


def find(text: str, grounding: Grounding, frame: Frame) -> tuple[tuple[Box, ...], tuple[Point, ...]]:
    """The boxes and points of an answer, special tokens included. Nonsense gives none; nothing raises.

    Boxes are cut at the frame's and the picture's edges; one without area there is left out, and so is a point outside.
    At most `limits.BOXES` of both are read.
    """
    boxes, points = list[Box](), list[Point]()
    for label, numbers in islice(_READERS[grounding.form](text, grounding), limits.BOXES):
        pixels = _pixels(numbers, grounding, frame)
        label = label.strip()[: limits.LABEL]
        if len(pixels) == 1 and _inside(pixels[0], frame):
            points.append(Point(label, *frame.back(*pixels[0])))
        elif len(pixels) == 2:
            (x0, y0), (x1, y1) = (_cut(frame.back(*_cut(p, frame.width, frame.height)), *frame.picture) for p in pixels)
            if x0 < x1 and y0 < y1:
                boxes.append(Box(label, x0, y0, x1, y1))
    return tuple(boxes), tuple(points)


def _pixels(numbers: Sequence[float], grounding: Grounding, frame: Frame) -> list[tuple[float, float]]:
    """Pairs of numbers as pixels of the frame."""
    values = [number + 0.5 * grounding.middle for number in numbers]
    pairs = [(b, a) if grounding.y_first else (a, b) for a, b in zip(values[::2], values[1::2], strict=True)]
    if not grounding.scale:
        return pairs
    return [(x * frame.width / grounding.scale, y * frame.height / grounding.scale) for x, y in pairs]


def _cut(place: tuple[float, float], width: float, height: float) -> tuple[float, float]:
    return min(max(place[0], 0.0), float(width)), min(max(place[1], 0.0), float(height))


def _inside(place: tuple[float, float], frame: Frame) -> bool:
    x, y = frame.back(*place)
    return _cut(place, frame.width, frame.height) == place and _cut((x, y), *frame.picture) == (x, y)


# Numbers of at most seven digits before the point: more is no place in a picture.
_NUMBER = re.compile(r"(?<![\d.])-?\d{1,7}(?:\.\d{0,9})?(?![\d.])")
# Up to the brace that closes it or another outside of strings, or to the end: never read twice, so time grows as text.
_OBJECT = re.compile(r'\{(?:[^{}"]++|"(?:[^"\\\n]|\\.)*+"?+)*+\}?+')
_WORDS = re.compile(r"(?:\s*<[^<>\s]{1,40}>)*\s*")  # what stands before a label: white space and other tokens
_BETWEEN = re.compile(r"[\s()\[\],]*")
_LIST = re.compile(r"\[[^\[\]]*\]")
Found = Iterator[tuple[str, list[float]]]


def _json(text: str, grounding: Grounding) -> Found:
    """Objects one by one, so that a list which is cut off still gives those before its end."""
    closed = (match[0] for match in _OBJECT.finditer(text) if match[0].endswith("}"))
    for found in islice(closed, limits.BOXES):
        try:
            value = parse_json(found.encode("utf-8", "replace"), limits.TEXT)
        except ValueError:
            continue
        label = value.get("label", value.get("category", ""))
        for keys, count in ((("bbox_2d", "box_2d", "bbox"), 4), (("point_2d", "point"), 2)):
            numbers = next((value[key] for key in keys if key in value), None)
            if isinstance(numbers, list) and len(numbers) == count and all(map(_is_place, numbers)):
                yield label if isinstance(label, str) else "", [float(number) for number in numbers]


def _is_place(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and abs(number) < 1e7


def _tagged(text: str, grounding: Grounding) -> Found:
    """A label counts for all boxes behind it up to the next words."""
    label = ""
    before, *parts = text.split(grounding.open, limits.BOXES)
    for part in parts:
        if grounding.label_open and before.strip(" ,;\n"):
            named = before.rpartition(grounding.label_open)[2].partition(grounding.label_close)
            label = named[0] if named[1] and not named[2].strip() else ""
        inside, closed, before = part.partition(grounding.close)
        if not closed:
            break
        for group in _LIST.findall(inside) or [inside]:
            numbers = [float(number) for number in _NUMBER.findall(group)]
            if len(numbers) in (2, 4) and _BETWEEN.fullmatch(_NUMBER.sub("", group)):
                yield label, numbers


def _tokens(text: str, grounding: Grounding) -> Found:
    """A row of tokens is as many boxes as it has fours; a row of two is a point."""
    token = re.compile(re.escape(grounding.open) + r"(\d{1,7})" + re.escape(grounding.close))
    places = [(match.start(), match.end(), float(match[1])) for match in token.finditer(text)]
    row: list[float] = []
    for (_, end, number), following in zip(places, [*places[1:], None], strict=False):
        row.append(number)
        between = text[end : following[0] if following else len(text)]
        if following is None or between.strip():
            label = _WORDS.sub("", between[: limits.LABEL * 16], count=1).partition(";")[0].partition("<")[0]
            label = label.partition("\n")[0]
            size = 2 if len(row) == 2 else 4
            for start in range(0, len(row) - size + 1, size):
                yield label, row[start : start + size]
            row = []


_READERS: dict[str, Callable[[str, Grounding], Found]] = {"json": _json, "tagged": _tagged, "tokens": _tokens}
