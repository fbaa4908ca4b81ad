"""A picture with the boxes and points of an answer drawn on it."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from edgevlm.inputs.grounding import Box, Point
from edgevlm.io.text import printable

# Okabe and Ito's colours, which most kinds of colour blindness tell apart; black and white are left out.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_MOST = 60  # characters of a label that are drawn


def draw(picture: Image.Image, boxes: Sequence[Box], points: Sequence[Point]) -> Image.Image:
    """A copy of an RGB picture with a frame around each box, a dot on each point, and their labels."""
    drawn = picture.copy()
    canvas = ImageDraw.Draw(drawn)
    unit = max(2, round(min(picture.size) / 160))  # pixels of a line
    font = ImageFont.load_default(max(10, unit * 6))
    places: list[Box | Point] = [*boxes, *points]
    labels = dict.fromkeys(place.label for place in places)
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}
    for box in boxes:
        left, top = round(box.x0), round(box.y0)
        # The last pixel of a box is the one before its far edge.
        right, bottom = max(left, round(box.x1) - 1), max(top, round(box.y1) - 1)
        canvas.rectangle((left, top, right, bottom), outline=colours[box.label], width=unit)
    for point in points:
        canvas.circle((point.x, point.y), unit * 3, fill=colours[point.label], outline="white", width=max(1, unit // 2))
    # Last, so that no frame is drawn over a label.
    for place in places:
        corner = (place.x0, place.y0) if isinstance(place, Box) else (place.x + 4 * unit, place.y)
        _write(canvas, place.label, corner, colours[place.label], font, picture.size, unit)
    return drawn


def _write(
    canvas: ImageDraw.ImageDraw,
    label: str,
    corner: tuple[float, float],
    colour: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
    pad: int,
) -> None:
    """A label on a ground of its colour, above `corner` where there is room, and inside the picture."""
    text = printable(label)[:_MOST]
    if not text:
        return
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    wide, high = right - left + 2 * pad, bottom - top + 2 * pad
    x = min(max(0, corner[0]), max(0, size[0] - wide))
    y = corner[1] - high if corner[1] >= high else min(corner[1], max(0, size[1] - high))
    canvas.rectangle((x, y, x + wide, y + high), fill=colour)
    canvas.text((x + pad - left, y + pad - top), text, fill="black", font=font)
