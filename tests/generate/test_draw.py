"""Drawn boxes lie where they should, on pictures of any size, with labels of any text."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from edgevlm.generate.draw import COLOURS, draw
from edgevlm.inputs.grounding import Box, Point


def black(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height))


def test_a_box_is_framed_inside_its_edges() -> None:
    drawn = np.asarray(draw(black(200, 160), [Box("", 40, 30, 120, 90)], []))
    rows, columns = np.flatnonzero(drawn.any((1, 2))), np.flatnonzero(drawn.any((0, 2)))
    assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (40, 30, 120, 90)
    assert not drawn[32:88, 42:118].any() and "#{:02X}{:02X}{:02X}".format(*drawn[30, 40]) == COLOURS[0]


def test_things_of_one_label_have_one_colour() -> None:
    boxes = [Box("a", 5, 60, 45, 90), Box("b", 55, 60, 95, 90), Box("a", 105, 60, 145, 90)]
    drawn = np.asarray(draw(black(160, 100), boxes, [Point("c", 80, 20)]))
    assert (drawn[89, 20] == drawn[89, 120]).all() and (drawn[89, 20] != drawn[89, 70]).any()
    assert drawn[20, 80].any()


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (1000, 700)])
@pytest.mark.parametrize("label", ["", "dog", "x" * 256, "\x1b[31m\n", "\U0001f436 \u6811 \u202e", "\ud800"])
def test_any_label_on_any_picture(size: tuple[int, int], label: str) -> None:
    width, height = size
    places = [Box(label, 0, 0, width, height), Box(label, width - 0.5, height - 0.5, width, height)]
    drawn = draw(black(*size), places, [Point(label, width, height)])
    assert drawn.size == size and drawn.mode == "RGB" and np.asarray(drawn).any()
