"""Generated scenes with exact ground truth: coloured shapes that do not overlap, on varied backgrounds.

A scene is a pure function of (split, seed): the same pair gives the same pixels and objects on every machine.
Drawing uses Pillow polygons on a canvas at native resolution, so that the picture then passes through the
very preprocessing that a user's photograph passes through.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "orange": (245, 140, 20),
    "yellow": (250, 222, 40),
    "green": (40, 155, 60),
    "blue": (40, 85, 220),
    "purple": (140, 55, 180),
    "black": (25, 25, 28),
    "white": (246, 246, 246),
}
COLOUR_NAMES = tuple(COLOURS)
SPLITS = ("train", "validation", "test", "unseen")
# (colour, shape) pairs that no training picture shows or question names; every scene of the split
# "unseen" shows one.
UNSEEN_PAIRS = (("red", "star"), ("blue", "triangle"), ("yellow", "cross"), ("purple", "square"))
ALL_PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
MAX_OBJECTS = 6
# Euclidean distance in RGB that every object keeps from the background around it.
MIN_CONTRAST = 95.0

Rng = np.random.Generator


@dataclass(frozen=True)
class SceneObject:
    shape: str
    colour: str
    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels of the picture
    outline: tuple[tuple[float, float], ...]  # polygon corners in pixels of the picture

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Scene:
    """A picture (RGB) and what it shows."""

    picture: Image.Image
    objects: tuple[SceneObject, ...]


def _unit_outlines() -> dict[str, npt.NDArray[np.float64]]:
    """Each shape as a polygon inside the unit circle, y down."""

    def ring(angles: npt.NDArray[np.float64], radii: npt.NDArray[np.float64] | float) -> npt.NDArray[np.float64]:
        return np.stack([np.sin(angles) * radii, -np.cos(angles) * radii], 1)

    turn = 2 * math.pi
    arm, width = 0.94, 0.30
    quarter = [(-width, -arm), (width, -arm), (width, -width)]
    cross = list(quarter)
    for _ in range(3):
        quarter = [(-y, x) for x, y in quarter]
        cross += quarter
    return {
        "circle": ring(np.arange(36) / 36 * turn, 0.9),
        "square": ring((np.arange(4) + 0.5) / 4 * turn, 1.1),
        "triangle": ring(np.arange(3) / 3 * turn, 1.1) + np.array([0, 0.2]),
        "star": ring(np.arange(10) / 10 * turn, np.where(np.arange(10) % 2, 0.42, 1.05)),
        "diamond": np.array([(0, -1.05), (0.72, 0), (0, 1.05), (-0.72, 0)]),
        "cross": np.array(cross),
    }


_OUTLINES = _unit_outlines()
# A square turned by 45 degrees is a diamond, so turns stay small enough that the name is never in doubt.
_MAX_TURN = {"circle": 0.0, "square": 12.0, "triangle": 20.0, "star": 36.0, "diamond": 10.0, "cross": 14.0}


def scene_rng(split: str, seed: int) -> Rng:
    """The random stream of one scene; streams of different splits never meet."""
    return np.random.default_rng([SPLITS.index(split), seed])


def draw_scene(split: str, seed: int, size: tuple[int, int] | None = None) -> Scene:
    """The scene number `seed` of a split. `size` is (width, height); without it the stream chooses one."""
    rng = scene_rng(split, seed)
    pairs = _choose_pairs(rng, split)
    return compose(rng, pairs, _choose_size(rng) if size is None else size)


def draw_crowd(split: str, seed: int, count: int = 10) -> Scene:
    """A scene of unrelated objects, `count` at most: more to learn from than in the scenes of questions."""
    rng = scene_rng(split, seed)
    pairs = [pair for pair in ALL_PAIRS if pair not in UNSEEN_PAIRS]
    chosen = [pairs[int(i)] for i in rng.integers(0, len(pairs), count)]
    return compose(rng, chosen, _choose_size(rng))


def _choose_size(rng: Rng) -> tuple[int, int]:
    """Most scenes have the longest edge that the processor resizes to first, so that resize is free."""
    longest = 384 if rng.random() < 0.75 else int(rng.integers(96, 400))
    ratio = float(rng.uniform(0.6, 1.0)) if rng.random() < 0.7 else 1.0
    shortest = max(64, round(longest * ratio))
    return (longest, shortest) if rng.random() < 0.6 else (shortest, longest)


def _choose_pairs(rng: Rng, split: str) -> list[tuple[str, str]]:
    """(colour, shape) of each object. Scenes with few kinds make large counts of one kind common."""
    count = int(rng.choice(MAX_OBJECTS, p=[0.15, 0.15, 0.18, 0.19, 0.2, 0.13])) + 1
    kinds = count if rng.random() < 0.35 else int(rng.integers(1, 4))
    shapes = SHAPES if rng.random() < 0.6 else tuple(rng.choice(SHAPES, 2, replace=False))
    colours = COLOUR_NAMES if rng.random() < 0.6 else tuple(rng.choice(COLOUR_NAMES, 2, replace=False))
    kind_list: list[tuple[str, str]] = []
    while len(kind_list) < kinds:
        pair = (str(rng.choice(colours)), str(rng.choice(shapes)))
        if pair not in UNSEEN_PAIRS:
            kind_list.append(pair)
        else:
            shapes, colours = SHAPES, COLOUR_NAMES  # a narrow choice might hold unseen pairs only
    pairs = [kind_list[int(i)] for i in rng.integers(0, kinds, count)]
    if split == "unseen":
        pairs[0] = UNSEEN_PAIRS[int(rng.integers(len(UNSEEN_PAIRS)))]
    return pairs


def compose(rng: Rng, pairs: list[tuple[str, str]], size: tuple[int, int], antialias: int = 1) -> Scene:
    """Place and paint the (colour, shape) `pairs` on a canvas of `size`; pairs without room are left out."""
    width, height = size
    paints = [np.clip(np.array(COLOURS[c]) + rng.integers(-10, 11, 3), 0, 255) for c, _ in pairs]
    places = _place(rng, len(pairs), width, height)
    objects, fills = [], []
    for (colour, shape), paint, (x, y, radius) in zip(pairs, paints, places, strict=False):
        turn = math.radians(float(rng.uniform(-1, 1)) * _MAX_TURN[shape])
        rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        points = _OUTLINES[shape] @ rotation * radius + [x, y]
        low, high = points.min(0), points.max(0)
        box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
        objects.append(SceneObject(shape, colour, box, tuple((float(a), float(b)) for a, b in points)))
        fills.append(tuple(int(v) for v in paint))
    canvas = _background(rng, width, height, np.array(fills, dtype=np.float64))
    if antialias > 1:
        canvas = canvas.resize((width * antialias, height * antialias), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas)
    for item, fill in zip(objects, fills, strict=True):
        pen.polygon([(a * antialias, b * antialias) for a, b in item.outline], fill=fill)
    return Scene(canvas.reduce(antialias) if antialias > 1 else canvas, tuple(objects))


def _place(rng: Rng, count: int, width: int, height: int) -> list[tuple[float, float, float]]:
    """(x, y, radius) of circles apart and inside the canvas; fewer than `count` where room runs out."""
    scale = math.sqrt(width * height)
    largest = {1: 0.30, 2: 0.23, 3: 0.19}.get(count, 0.16)
    common = float(rng.uniform(0.095, largest)) if rng.random() < 0.4 else None
    places: list[tuple[float, float, float]] = []
    for _ in range(count):
        for attempt in range(60):
            radius = scale * (common or float(rng.uniform(0.09, largest)))
            if attempt > 25:
                radius = scale * 0.09
            margin = radius * 1.12
            if 2 * margin >= min(width, height):
                continue
            x, y = float(rng.uniform(margin, width - margin)), float(rng.uniform(margin, height - margin))
            if all(math.hypot(x - a, y - b) > 1.1 * (radius + r) + 0.015 * scale for a, b, r in places):
                places.append((x, y, radius))
                break
    return places


def _background(rng: Rng, width: int, height: int, fills: npt.NDArray[np.float64]) -> Image.Image:
    """A muted plain, graded or grainy background that stands clear of every fill (shape (objects, 3))."""
    first, second = _muted(rng, fills), _muted(rng, fills)
    rows, columns = max(2, height // 4), max(2, width // 4)
    if rng.random() < 0.5 or not _clear((first + second) / 2, fills):
        second = first
    angle = float(rng.uniform(0, 2 * math.pi))
    ramp = math.cos(angle) * np.linspace(-1, 1, columns)[None] + math.sin(angle) * np.linspace(-1, 1, rows)[:, None]
    ramp = (ramp - ramp.min()) / (np.ptp(ramp) + 1e-9)
    field = first + ramp[..., None] * (second - first)
    if rng.random() < 0.5:
        grain = rng.normal(0, float(rng.uniform(2, 11)), (rows, columns, 1 if rng.random() < 0.5 else 3))
        field = field + grain
    small = Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))
    smooth = Image.Resampling.BILINEAR if rng.random() < 0.6 else Image.Resampling.NEAREST
    return small.resize((width, height), smooth)


def _muted(rng: Rng, fills: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A grey or pastel RGB colour at least MIN_CONTRAST from each fill (else the farthest of many)."""
    grey = rng.uniform(10, 250, (24, 1))
    candidates = np.clip(grey + rng.uniform(-1, 1, (24, 3)) * rng.uniform(0, 38, (24, 1)), 0, 255)
    if len(fills) == 0:
        return np.asarray(candidates[0])
    distance = np.linalg.norm(candidates[:, None] - fills[None], axis=2).min(1)
    clear = np.flatnonzero(distance >= MIN_CONTRAST)
    return np.asarray(candidates[clear[0] if len(clear) else int(distance.argmax())])


def _clear(colour: npt.NDArray[np.float64], fills: npt.NDArray[np.float64]) -> bool:
    return len(fills) == 0 or bool(np.linalg.norm(fills - colour, axis=1).min() >= MIN_CONTRAST)
