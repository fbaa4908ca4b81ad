"""Rules that make one square view of a picture, and what every rule is checked by."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from edgevlm.inputs import grids
from edgevlm.inputs.check import check
from edgevlm.inputs.resample import FILTERS
from edgevlm.inputs.views import Color, CropTo, ResizeTo, View
from edgevlm.io import limits


class CheckedRule:
    """Every whole number of a rule is at least 1 and bounded."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if type(value) is int:
                most = self.bounds().get(field.name, limits.VIEW_SIDE)
                check(1 <= value <= most, "image", field.name, f"1 to {most}", value)
            elif field.name == "whole_resample":
                check(value in FILTERS, "image", field.name, " or ".join(FILTERS), value)
            elif field.name == "color":
                check(all(0 <= v <= 255 for v in value), "image", "color", "0 to 255", value)

    def bounds(self) -> dict[str, int]:
        """The largest value of a field, where it is no edge."""
        return {}


@dataclass(frozen=True)
class Stretch(CheckedRule):
    """One square view, whatever the picture's shape (SigLIP)."""

    side: int
    kind: str = "stretch"

    def views(self, width: int, height: int, budget: int | None = None) -> list[View]:
        return [View((ResizeTo(self.side, self.side),))]


@dataclass(frozen=True)
class Crop(CheckedRule):
    """The short edge to `shortest`, then the square in the middle (CLIP)."""

    shortest: int
    side: int
    kind: str = "crop"

    def bounds(self) -> dict[str, int]:
        return {"side": min(self.shortest, limits.VIEW_SIDE)}

    def views(self, width: int, height: int, budget: int | None = None) -> list[View]:
        long = int(self.shortest * max(width, height) / min(width, height))
        size = (self.shortest, long) if width <= height else (long, self.shortest)
        left, top = ((edge - self.side) // 2 for edge in size)
        return [View((ResizeTo(*size), CropTo(left, top, self.side, self.side)))]


@dataclass(frozen=True)
class Pad(CheckedRule):
    """The picture in the middle of a square canvas, then that resized."""

    side: int
    color: Color
    kind: str = "pad"

    def views(self, width: int, height: int, budget: int | None = None) -> list[View]:
        return [View((*grids.square(width, height, self.color), ResizeTo(self.side, self.side)))]


@dataclass(frozen=True)
class Fit(CheckedRule):
    """The long edge to `side`, the other to no less than `least`; then a square canvas around it."""

    side: int
    least: int
    color: Color
    kind: str = "fit"

    def views(self, width: int, height: int, budget: int | None = None) -> list[View]:
        scale = self.side / max(width, height)
        size = max(round(width * scale), self.least), max(round(height * scale), self.least)
        return [View((ResizeTo(*size), *grids.square(*size, self.color)))]
