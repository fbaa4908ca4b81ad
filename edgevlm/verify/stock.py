"""What llama.cpp alone, without edgevlm's preprocessing, does with a picture, against what preprocess.json says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from edgevlm.bundle.manifest import Bundle
from edgevlm.inputs.decode import open_image
from edgevlm.inputs.preprocess import plan
from edgevlm.inputs.rules import TilesThenWhole
from edgevlm.inputs.spec import ImageSpec
from edgevlm.inputs.squares import Stretch
from edgevlm.inputs.views import ResizeTo
from edgevlm.runtimes.gguf import GgufFile, gguf_files
from edgevlm.runtimes.llama.names import SHUFFLE_LINEAR, SQUARES


def stock_note(projector_type: str, spec: ImageSpec) -> str:
    """One sentence on pictures of all kinds, for whoever takes the GGUF files alone."""
    does = ["ignores EXIF orientation and transparency"]
    if projector_type in SQUARES and isinstance(spec.rule, Stretch):
        does.append("lays pictures on a square where this model stretches them")
    elif projector_type != SHUFFLE_LINEAR or not isinstance(spec.rule, TilesThenWhole):
        does.append("scales pictures in a way of its own")
    elif not spec.rule.split:
        does.append("cuts every picture into tiles and adds an overview where this model takes one view")
    elif spec.resample != "lanczos":
        does.append(f"resamples with lanczos where this model has {spec.resample}")
    if spec.packing is not None:
        does.append("shows one view where this model has tiles too, without newlines behind rows of features")
    said = ", and ".join(does)
    return f"llama.cpp without edgevlm {said}: its answers about pictures can differ from edgevlm's."


@dataclass(frozen=True)
class StockPlan:
    """What llama.cpp's own preprocessing for SHUFFLE_LINEAR does with a picture (tools/mtmd/mtmd-image.cpp)."""

    resizes: tuple[tuple[int, int], tuple[int, int]]
    grid: tuple[int, int]  # rows, columns; an overview of the whole picture always follows

    @property
    def num_tiles(self) -> int:
        """0 where the engine refuses the picture: it scales a very narrow one to no pixels at all."""
        return self.grid[0] * self.grid[1] + 1 if all(self.grid) else 0


def stock_plan(width: int, height: int, tile: int, longest_edge: int) -> StockPlan:
    """`longest_edge` is the mmproj's clip.vision.preproc_image_size. The arithmetic is the engine's, C++ doubles."""
    aspect = width / height
    if width >= height:
        wide, high = longest_edge, int(longest_edge / aspect)
        high += high % 2
    else:
        wide, high = int(longest_edge * aspect), longest_edge
        wide += wide % 2
    columns, rows = math.ceil(wide / tile), math.ceil(high / tile)
    return StockPlan(((wide, high), (columns * tile, rows * tile)), (rows, columns))


def stock_warnings(bundle: Bundle, picture: Path) -> list[str]:
    """Sentences on what `llama-server` or llama-cpp-python alone would do with the raw file against the spec.

    Empty where both treat the picture alike, and without an mmproj of the only kind that is predicted, SHUFFLE_LINEAR.
    """
    mmproj = gguf_files(bundle)[1] if "gguf" in bundle.manifest.targets else None
    keys, spec = GgufFile(mmproj).keys if mmproj else {}, bundle.image_spec
    if keys.get("clip.projector_type") != SHUFFLE_LINEAR or not isinstance(spec.rule, TilesThenWhole):
        return []
    with Image.open(picture) as raw:
        size, turned = raw.size, raw.getexif().get(0x0112, 1) != 1
        transparent = "A" in raw.getbands() or "transparency" in raw.info
    seen = open_image(picture, spec.background)
    ours = plan(seen.shape[1], seen.shape[0], spec)
    resizes = [(step.width, step.height) for step in ours[0].steps if isinstance(step, ResizeTo)]
    per_tile = math.prod(spec.token_grid(ours[-1]))
    stock = stock_plan(*size, spec.rule.side, int(keys["clip.vision.preproc_image_size"]))
    found = []
    if not stock.num_tiles:
        found.append("refuse it, because it scales it to no pixels")
    elif stock.num_tiles != len(ours):
        found.append(
            f"encode {stock.num_tiles} tiles ({stock.num_tiles * per_tile} image tokens) where the spec has "
            f"{len(ours)} ({len(ours) * per_tile})"
        )
    elif _sizes(stock.resizes) != _sizes(resizes):
        found.append(f"scale it to {_sizes(stock.resizes)} where the spec has {_sizes(resizes)}")
    if spec.resample != "lanczos":
        found.append(f"resample with lanczos where the spec has {spec.resample}")
    if turned:
        found.append("ignore its EXIF orientation")
    if transparent:
        found.append(f"drop its transparency instead of laying it over {_colour(spec)}")
    name = f"{picture.name} ({size[0]} x {size[1]})"
    return [f"{name}: llama.cpp without edgevlm would {reason}." for reason in found]


def _sizes(resizes: Sequence[tuple[int, int]]) -> str:
    return ", then ".join(f"{width} x {height}" for width, height in resizes)


def _colour(spec: ImageSpec) -> str:
    return "RGB " + ", ".join(map(str, spec.background))
