"""Ground truth per patch of an encoder's grid, to train it on: thing, colour, letter and box."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgevlm.scenes.catalogue import CHARACTERS, COLOUR_NAMES, NOUN_INDEX
from edgevlm.scenes.scene import Scene
from edgevlm.types import F32, I64, U8

NOUN_CLASSES = len(NOUN_INDEX) + 1
COLOUR_CLASSES = len(COLOUR_NAMES) + 1
LETTER_CLASSES = len(CHARACTERS) + 1
# Part of a patch that must belong to objects for the patch to be labelled with one.
COVERED = 0.2


class PatchLabels(NamedTuple):
    """Of a grid of (rows, columns) patches that covers the whole picture. 0 is background in every class."""

    noun: I64  # (rows, columns) NOUN_INDEX + 1 of the object that has most of the patch
    colour: I64  # (rows, columns) place in COLOUR_NAMES + 1; 0 too where an object has colours of its own
    letter: I64  # (rows, columns) place in CHARACTERS + 1 of the character whose box has most of the patch
    box: F32  # (rows, columns, 4) left, top, right, bottom of that object in 0..1 of the picture; zeros without one
    cover: F32  # (rows, columns) part of the patch's pixels that belongs to any object
    centre: I64  # (rows, columns) NOUN_INDEX + 1 of an object whose box has its centre in this patch


def patch_labels(scene: Scene, rows: int, columns: int) -> PatchLabels:
    """Labels of a grid laid over the whole picture, as an encoder sees it after a resize to rows x columns patches."""
    count = len(scene.objects) + 1
    nouns = np.array([0] + [NOUN_INDEX[item.name] + 1 for item in scene.objects], np.int64)
    colours = np.array(
        [0] + [COLOUR_NAMES.index(item.colour) + 1 if item.colour else 0 for item in scene.objects], np.int64
    )
    boxes = np.array([(0.0,) * 4] + [scene.fraction(item.box) for item in scene.objects], np.float32)
    areas = _areas(scene.owners, rows, columns, count)
    total = areas.sum(2)
    cover = (1 - areas[..., 0] / total).astype(np.float32)
    owner = np.where(cover >= COVERED, areas[..., 1:].argmax(2) + 1, 0) if count > 1 else np.zeros((rows, columns), int)
    centre = np.zeros((rows, columns), np.int64)
    for number, (left, top, right, bottom) in enumerate(boxes[1:], 1):
        row, column = int((top + bottom) / 2 * rows), int((left + right) / 2 * columns)
        centre[min(row, rows - 1), min(column, columns - 1)] = nouns[number]
    return PatchLabels(nouns[owner], colours[owner], _letters(scene, rows, columns), boxes[owner], cover, centre)


def _areas(owners: U8, rows: int, columns: int, count: int) -> I64:
    """(rows, columns, count) pixels of each owner in each patch."""
    height, width = owners.shape
    row = np.arange(height) * rows // height
    column = np.arange(width) * columns // width
    key = (row[:, None] * columns + column[None]) * count + owners
    return np.bincount(key.ravel(), minlength=rows * columns * count).reshape(rows, columns, count)


def _letters(scene: Scene, rows: int, columns: int) -> I64:
    """The character that covers most of each patch, by overlap of boxes; 0 where none covers COVERED of it."""
    width, height = scene.picture.size
    best = np.full((rows, columns), COVERED * (width / columns) * (height / rows))
    letters = np.zeros((rows, columns), np.int64)
    x, y = np.arange(columns + 1) * (width / columns), np.arange(rows + 1) * (height / rows)
    for item in scene.objects:
        for character, (left, top, right, bottom) in item.letters:
            across = np.clip(np.minimum(right, x[1:]) - np.maximum(left, x[:-1]), 0, None)
            down = np.clip(np.minimum(bottom, y[1:]) - np.maximum(top, y[:-1]), 0, None)
            area = down[:, None] * across[None]
            letters[area > best] = CHARACTERS.index(character) + 1
            best = np.maximum(best, area)
    return letters
