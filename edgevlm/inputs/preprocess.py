"""Decoded RGB -> uint8 tiles -> float32 tiles: the arithmetic that docs/preprocessing.md defines.

Equal bit for bit to Hugging Face's PIL image processors of the SmolVLM and Idefics3 families (tests hold
this); what those write as code, ImageSpec holds as values.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.resample import resize_image
from edgevlm.inputs.spec import ImageSpec
from edgevlm.types import F32, U8


@dataclass(frozen=True, eq=False)
class Tiles:
    """One picture as the vision encoder takes it."""

    pixels: F32  # (T, 3, S, S)
    grid: tuple[int, int]  # rows, columns; (0, 0): the whole picture only. T = rows * columns + 1


@dataclass(frozen=True)
class Plan:
    """What happens to a picture of one size, before any pixel is touched."""

    resizes: tuple[tuple[int, int], ...]  # (width, height) of each resize, in order
    grid: tuple[int, int]  # rows, columns

    @property
    def num_tiles(self) -> int:
        return self.grid[0] * self.grid[1] + 1


def plan(width: int, height: int, spec: ImageSpec, *, max_tiles: int | None = None) -> Plan:
    """The resizes and the tile grid of a picture of that size (docs/preprocessing.md, sections 3 and 4)."""
    if max_tiles is not None and max_tiles < 1:
        raise EdgeVLMError(f"The tile budget is {max_tiles}: it should be 1 (the whole picture only) or more.")
    if spec.split and max_tiles != 1:
        for edge in _longest_edges(width, height, spec, max_tiles):
            tiled = _plan_tiles(width, height, spec, edge)
            if max_tiles is None or tiled.num_tiles <= max_tiles:
                return tiled
    side = spec.tile_size
    return Plan((*_scale(width, height, spec, spec.longest_edge), (side, side)), (0, 0))


def resize_and_split(
    image: U8 | Image.Image, spec: ImageSpec, *, max_tiles: int | None = None
) -> tuple[U8, tuple[int, int]]:
    """RGB picture, uint8 (H, W, 3) or Pillow -> tiles uint8 (T, S, S, 3) and the grid (rows, columns)."""
    picture = image if isinstance(image, Image.Image) else _from_array(image)
    if picture.mode != "RGB":
        raise EdgeVLMError(
            f"Preprocessing takes a decoded RGB picture, found mode {picture.mode}: open it with open_image."
        )
    steps = plan(picture.width, picture.height, spec, max_tiles=max_tiles)
    for size in steps.resizes:
        picture = resize_image(picture, size, spec.resample)
    rows, cols = steps.grid
    side = spec.tile_size
    tiles = np.empty((steps.num_tiles, side, side, 3), np.uint8)
    if rows:
        cells = np.asarray(picture).reshape(rows, side, cols, side, 3).swapaxes(1, 2)
        tiles[:-1] = cells.reshape(-1, side, side, 3)
        picture = resize_image(picture, (side, side), spec.resample)
    tiles[-1] = np.asarray(picture)
    return tiles, steps.grid


def normalize(tiles: U8, spec: ImageSpec) -> F32:
    """uint8 (T, S, S, 3) -> float32 (T, 3, S, S), through a table of 256 values per channel."""
    tables = normalize_tables(spec)
    pixels = np.empty((tiles.shape[0], 3, *tiles.shape[1:3]), np.float32)
    for tile, out in zip(tiles, pixels, strict=True):
        for channel in range(3):
            np.take(tables[channel], tile[:, :, channel], out=out[channel], mode="clip")
    return pixels


def normalize_tables(spec: ImageSpec) -> F32:
    """float32 (3, 256): what each uint8 becomes in each channel; rescaled in float64, the rest in float32."""
    rescaled = (np.arange(256, dtype=np.float64) * spec.rescale_factor).astype(np.float32)
    mean = np.array(spec.mean, dtype=np.float32)[:, None]
    std = np.array(spec.std, dtype=np.float32)[:, None]
    return (rescaled - mean) / std


def preprocess(image: U8 | Image.Image, spec: ImageSpec, *, max_tiles: int | None = None) -> Tiles:
    """RGB picture, uint8 (H, W, 3) or Pillow -> at most `max_tiles` tiles (None: as the spec says)."""
    tiles, grid = resize_and_split(image, spec, max_tiles=max_tiles)
    return Tiles(normalize(tiles, spec), grid)


def tile_key(tile: F32) -> bytes:
    """What tells one tile from another: a sha256 of its values."""
    return hashlib.sha256(np.ascontiguousarray(tile)).digest()


def _longest_edges(width: int, height: int, spec: ImageSpec, max_tiles: int | None) -> Iterator[int | None]:
    """The longest edges a budget may fall back to: the spec's own, then whole numbers of tiles, from 2 up."""
    yield spec.longest_edge
    if max_tiles is None:
        return
    side = spec.tile_size
    largest = min(spec.longest_edge or max(width, height), spec.max_edge)
    # `count` tiles along the long edge are at least count + 1 tiles in all.
    for count in range(min((largest - 1) // side, max_tiles - 1), 1, -1):
        yield count * side


def _plan_tiles(width: int, height: int, spec: ImageSpec, longest_edge: int | None) -> Plan:
    side = spec.tile_size
    scaled = _scale(width, height, spec, longest_edge)
    width, height = scaled[0] if scaled else (width, height)
    aspect = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        height = math.ceil(int(width / aspect) / side) * side
    else:
        height = math.ceil(height / side) * side
        width = math.ceil(int(height * aspect) / side) * side
    rows, cols = height // side, width // side
    return Plan((*scaled, (width, height)), (0, 0) if rows == cols == 1 else (rows, cols))


def _scale(width: int, height: int, spec: ImageSpec, longest_edge: int | None) -> list[tuple[int, int]]:
    """The first resize, if any: the longest edge to `longest_edge`, or to `max_edge` if that is less."""
    if longest_edge is None:
        return []
    multiple = spec.short_edge_multiple
    aspect = width / height
    if width >= height:
        width = longest_edge
        height = max(-(-int(width / aspect) // multiple) * multiple, 1)
    else:
        height = longest_edge
        width = max(-(-int(height * aspect) // multiple) * multiple, 1)
    aspect = width / height
    if width >= height and width > spec.max_edge:
        width = spec.max_edge
        height = max(int(width / aspect), 1)
    elif height > width and height > spec.max_edge:
        height = spec.max_edge
        width = max(int(height * aspect), 1)
    return [(width, height)]


def _from_array(image: U8) -> Image.Image:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise EdgeVLMError(
            f"Preprocessing takes RGB uint8 (height, width, 3), found {image.dtype} {image.shape}: "
            "open it with open_image."
        )
    return Image.fromarray(image)
