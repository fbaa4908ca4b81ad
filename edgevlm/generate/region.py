"""Boxes and points out of a model's region head: each number is read from a state, and read by the decoder in turn."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import asdict

from edgevlm.inputs.grounding import Box, Point
from edgevlm.io.text import json_text
from edgevlm.runtimes.region import RegionHead
from edgevlm.types import F32

POSITIONS = {"boxes": 3, "points": 2}  # of the context that one of them takes
Place = Box | Point


def find_places(
    head: RegionHead,
    logits: F32,
    state: Callable[[], F32],
    forward: Callable[[F32], F32],
    *,
    kind: str,
    label: str,
    picture: tuple[int, int],
    most: int,
    endless: bool = False,
) -> Generator[Place, None, str]:
    """Each place in pixels of the picture, in the model's order; returns `Answer.finish_reason`.

    logits: those after the prompt. state, forward: `StateDecoder.hidden_state`, and the decoder's `forward`.
    kind: "boxes" or "points". picture: width and height. most: positions that the answer may take. endless: go on up to
    these whatever the model says. Every number is the most likely one. Boxes are cut at the picture's edges.
    """
    width, height = picture
    while endless or int(logits.argmax()) != head.end:
        if most < POSITIONS[kind]:
            return "length"
        most -= POSITIONS[kind]
        x = head.coordinate(state())
        forward(head.coordinate_row(x))
        y = head.coordinate(state())
        logits = forward(head.coordinate_row(y))
        if kind == "points":
            yield Point(label, x * width, y * height)
            continue
        wide, high = size = head.size(state())
        logits = forward(head.size_row(size))
        left, right = (min(max(x + side * wide, 0.0), 1.0) * width for side in (-0.5, 0.5))
        top, bottom = (min(max(y + side * high, 0.0), 1.0) * height for side in (-0.5, 0.5))
        yield Box(label, left, top, right, bottom)
    return "stop"


def line_of(place: Place) -> str:
    """A place as JSON, to a tenth of a pixel: what stands for it in an answer that has no text of the model's."""
    return json_text({name: round(v, 1) if isinstance(v, float) else v for name, v in asdict(place).items()})
