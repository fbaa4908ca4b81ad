"""A picture becomes views: each is what the encoder sees at once, cut from the picture in a few steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.picture_limits import MAX_PIXELS
from edgevlm.inputs.resample import resize_image
from edgevlm.types import U8

Color = tuple[int, int, int]
Place = tuple[int, int]  # row and column of a tile, from 1


def _check_pixels(picture: Image.Image, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise EdgeVLMError(
            f"A picture of {picture.width} x {picture.height} would become {width} x {height} pixels, "
            f"at most {MAX_PIXELS / 1e6:.1f} million are made: cut it into less elongated pieces first."
        )


@dataclass(frozen=True)
class ResizeTo:
    width: int
    height: int
    resample: str = ""  # empty: the spec's own

    def run(self, picture: Image.Image, resample: str) -> Image.Image:
        _check_pixels(picture, self.width, self.height)
        return resize_image(picture, (self.width, self.height), self.resample or resample)


@dataclass(frozen=True)
class PadTo:
    """The picture on a larger canvas of one color."""

    width: int
    height: int
    left: int  # where the picture begins
    top: int
    color: Color

    def run(self, picture: Image.Image, resample: str) -> Image.Image:
        _check_pixels(picture, self.width, self.height)
        canvas = Image.new("RGB", (self.width, self.height), self.color)
        canvas.paste(picture, (self.left, self.top))
        return canvas


@dataclass(frozen=True)
class CropTo:
    left: int
    top: int
    width: int
    height: int

    def run(self, picture: Image.Image, resample: str) -> Image.Image:
        return picture.crop((self.left, self.top, self.left + self.width, self.top + self.height))


@dataclass(frozen=True)
class Sheet:
    """Square views of a picture side by side as one: the first at the left of the first row, which is black otherwise,
    and the others in rows of `columns` below."""

    parts: tuple[View, ...]
    columns: int

    @property
    def width(self) -> int:
        return self.columns * self.parts[0].size[0]

    @property
    def height(self) -> int:
        return (1 + (len(self.parts) - 1) // self.columns) * self.parts[0].size[0]

    def places(self) -> list[tuple[int, int]]:
        """Left and top edge of each part."""
        side = self.parts[0].size[0]
        rest = (divmod(number, self.columns) for number in range(len(self.parts) - 1))
        return [(0, 0), *((col * side, (row + 1) * side) for row, col in rest)]

    def run(self, picture: Image.Image, resample: str) -> Image.Image:
        _check_pixels(picture, self.width, self.height)
        canvas = Image.new("RGB", (self.width, self.height))
        for part, place in zip(cut(picture, self.parts, resample), self.places(), strict=True):
            canvas.paste(Image.fromarray(part), place)
        return canvas


@dataclass(frozen=True)
class View:
    """steps: at least one, from the picture on. place: of a tile; None is the whole picture."""

    steps: tuple[Step, ...]
    place: Place | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.steps[-1].width, self.steps[-1].height


Step = ResizeTo | PadTo | CropTo | Sheet


def cut(picture: Image.Image, views: Sequence[View], resample: str) -> list[U8]:
    """The views of an RGB picture, each uint8 (H, W, 3). Steps that several views begin with run once."""
    uses = Counter(view.steps[:n] for view in views for n in range(1, len(view.steps)))
    made: dict[tuple[Step, ...], Image.Image] = {(): picture}

    def run(steps: tuple[Step, ...]) -> Image.Image:
        if steps in made:
            return made[steps]
        result = steps[-1].run(run(steps[:-1]), resample)
        if uses[steps] > 1:
            made[steps] = result
        return result

    return [np.asarray(run(view.steps)) for view in views]
