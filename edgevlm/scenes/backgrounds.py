"""Muted backgrounds that stand clear of every object's colour, in exact integer arithmetic."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgevlm.scenes.atlas import RGB, texture, texture_count
from edgevlm.scenes.stream import Stream
from edgevlm.types import U8

# Distance in RGB that a background's colours keep from each object's main colour.
CLEAR = 92
# No squares, rings or spots: a background must not look like an object that a question asks about.
STYLES = ("plain", "gradient", "grain", "stripes", "blobs", "photo")
_WEIGHTS = (17, 19, 15, 12, 16, 21)
I32 = npt.NDArray[np.int32]


def background(stream: Stream, size: tuple[int, int], fills: list[RGB]) -> Image.Image:
    """An RGB picture of `size` (width, height); `fills` are the main colours of the objects to come."""
    style = stream.weighted(STYLES, _WEIGHTS)
    first = _muted(stream, fills)
    second = _second(stream, first, fills)
    width, height = size
    if style == "plain":
        return Image.new("RGB", size, _rgb(first))
    if style == "photo":
        return _photo(stream, size, first)
    if style == "blobs":
        rows, columns = stream.between(3, 7), stream.between(3, 7)
        grid = np.array([[stream.below(257) for _ in range(columns)] for _ in range(rows)], np.int32)
        return _mix(first, second, grid).resize(size, Image.Resampling.BICUBIC)
    if style == "stripes":
        return _stripes(stream, size, first, second)
    ramp = _ramp(stream, (max(2, width // 4), max(2, height // 4)))
    if style == "gradient":
        return _mix(first, second, ramp).resize(size, Image.Resampling.BILINEAR)
    rows, columns = -(-height // 2), -(-width // 2)
    noise = stream.noise(rows, columns).astype(np.int32) * stream.between(3, 14) // 148
    return Image.fromarray(_bytes(first + noise[..., None])).resize(size, Image.Resampling.NEAREST)


def _ramp(stream: Stream, size: tuple[int, int]) -> I32:
    """0..256 along a random direction."""
    across, down = stream.between(-8, 8), stream.between(-8, 8)
    if across == down == 0:
        across = 1
    x, y = np.arange(size[0], dtype=np.int32), np.arange(size[1], dtype=np.int32)
    plane = across * x[None] * 256 // size[0] + down * y[:, None] * 256 // size[1]
    plane = plane - plane.min()
    return np.asarray(plane * 256 // max(1, int(plane.max())), np.int32)


def _stripes(stream: Stream, size: tuple[int, int], first: I32, second: I32) -> Image.Image:
    width, height = size
    period = stream.between(max(4, min(size) // 20), max(8, min(size) // 5))
    x, y = np.arange(width, dtype=np.int32)[None], np.arange(height, dtype=np.int32)[:, None]
    across, down = stream.choice(((1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2)))
    phase = (across * x + down * y + np.zeros((height, width), np.int32)) % period
    return _mix(first, second, np.asarray((phase * 2 < period) * 256, np.int32))


def _photo(stream: Stream, size: tuple[int, int], base: I32) -> Image.Image:
    """A stretch of a photograph, its mean moved to the base colour and its contrast reduced."""
    share = stream.uniform(0.5, 1.0)
    left, top = stream.uniform(0, 1 - share), stream.uniform(0, 1 - share)
    small = texture(stream.below(texture_count()), (left, top, left + share, top + share), (size[0] // 2, size[1] // 2))
    pixels = np.asarray(small).astype(np.int32)
    mean = pixels.reshape(-1, 3).sum(0) // (pixels.shape[0] * pixels.shape[1])
    moved = base + (pixels - mean) * stream.between(90, 200) // 256
    return Image.fromarray(_bytes(moved)).resize(size, Image.Resampling.BILINEAR)


def _mix(first: I32, second: I32, share: I32) -> Image.Image:
    """RGB picture of first where share is 0 and second where it is 256; share is (rows, columns)."""
    return Image.fromarray(_bytes(first + (second - first) * share[..., None] // 256))


def _bytes(values: I32) -> U8:
    return np.clip(values, 0, 255).astype(np.uint8)


def _rgb(colour: I32) -> RGB:
    red, green, blue = (int(value) for value in colour)
    return red, green, blue


def _muted(stream: Stream, fills: list[RGB]) -> I32:
    """A grey or pastel at least CLEAR from each fill, else the farthest of many."""
    best, distance = np.zeros(3, np.int32), -1
    for _ in range(16):
        grey, tint = stream.between(12, 246), stream.between(0, 44)
        colour = np.array([min(250, max(6, grey + stream.between(-tint, tint))) for _ in range(3)], np.int32)
        nearest = _nearest(colour, fills)
        if nearest >= CLEAR:
            return colour
        if nearest > distance:
            best, distance = colour, nearest
    return best


def _second(stream: Stream, first: I32, fills: list[RGB]) -> I32:
    """Another such colour, if those between the two are clear as well; else one close to the first."""
    for _ in range(4):
        second = _muted(stream, fills)
        between = min(_nearest(first + (second - first) * step // 4, fills) for step in (1, 2, 3, 4))
        if between >= CLEAR * 3 // 4:
            return second
    return np.clip(first + stream.between(-14, 14), 0, 255).astype(np.int32)


def _nearest(colour: I32, fills: list[RGB]) -> int:
    red, green, blue = _rgb(colour)
    squares = [(red - r) ** 2 + (green - g) ** 2 + (blue - b) ** 2 for r, g, b in fills]
    return int(min(squares, default=10**6) ** 0.5)
