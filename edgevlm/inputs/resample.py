"""The normative resampler: Pillow 13's two-pass 22-bit fixed-point resize, for ports to follow.

`resize` is the arithmetic in numpy; `resize_image` gives the same bits through Pillow, faster, and is what
`preprocess` calls. Source: src/libImaging/Resample.c of Pillow 13.0.0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgevlm.errors import EdgeVLMError
from edgevlm.types import U8

PRECISION_BITS = 22


def _bilinear(x: float) -> float:
    x = abs(x)
    return 1.0 - x if x < 1.0 else 0.0


def _bicubic(x: float) -> float:
    a = -0.5
    x = abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0


def _sinc(x: float) -> float:
    if x == 0.0:
        return 1.0
    x *= math.pi
    return math.sin(x) / x


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3.0 <= x < 3.0 else 0.0


# name -> (kernel, half of its width in source pixels when enlarging)
KERNELS: dict[str, tuple[Callable[[float], float], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}


PLAIN = "bicubic_plain"  # torch's bicubic, which reads four pixels per axis however much a picture shrinks
FILTERS = (*KERNELS, PLAIN)
_PILLOW = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def coefficients(in_size: int, out_size: int, resample: str) -> list[tuple[int, npt.NDArray[np.int32]]]:
    """For each output position: the first input position and the 22-bit integer weights from there on."""
    if resample not in KERNELS:
        raise EdgeVLMError(f"The filter '{resample}' is unknown: use {', '.join(KERNELS)}.")
    kernel, support = KERNELS[resample]
    scale = in_size / out_size
    stretch = max(scale, 1.0)
    support *= stretch
    inverse = 1.0 / stretch
    rows = []
    for position in range(out_size):
        center = (position + 0.5) * scale
        first = max(int(center - support + 0.5), 0)
        last = min(int(center + support + 0.5), in_size)
        weights = [kernel((i + first - center + 0.5) * inverse) for i in range(last - first)]
        total = 0.0
        for weight in weights:  # not math.fsum: the order of these additions is part of the arithmetic
            total += weight
        if total != 0.0:
            weights = [weight / total for weight in weights]
        one = 1 << PRECISION_BITS
        fixed = [int(w * one - 0.5) if w < 0 else int(w * one + 0.5) for w in weights]
        rows.append((first, np.array(fixed, dtype=np.int32)))
    return rows


def _pass(image: U8, out_size: int, resample: str) -> U8:
    """Resample axis 0 of `image` (N, ...) to `out_size`."""
    out = np.empty((out_size, *image.shape[1:]), np.uint8)
    half = 1 << (PRECISION_BITS - 1)
    for position, (first, weights) in enumerate(coefficients(image.shape[0], out_size, resample)):
        window = image[first : first + len(weights)].astype(np.int32)
        total = half + np.tensordot(weights, window, axes=1)  # fits int32, as it does in C
        out[position] = np.clip(total >> PRECISION_BITS, 0, 255)
    return out


def resize(image: U8, width: int, height: int, resample: str) -> U8:
    """Resize `image` (H, W, C) uint8 to (height, width, C) uint8: rows first, rounded, then columns.

    Columns go first where the height shrinks by more than twice what the width does. A pass that would not
    change the size is left out.
    """
    if width < 1 or height < 1 or 0 in image.shape:
        raise EdgeVLMError(f"An image of {image.shape} cannot be resized to {width} x {height}: sizes start at 1.")
    if resample == PLAIN:
        return _plain(image, width, height)
    for new_width, new_height in passes((image.shape[1], image.shape[0]), (width, height)):
        if new_width != image.shape[1]:
            image = _pass(image.swapaxes(0, 1), new_width, resample).swapaxes(0, 1)
        elif new_height != image.shape[0]:
            image = _pass(image, new_height, resample)
    return np.ascontiguousarray(image)


def resize_image(image: Image.Image, size: tuple[int, int], resample: str) -> Image.Image:
    """As `resize`, by Pillow of any version: `image` of mode RGB, `size` (width, height)."""
    if resample == PLAIN:
        return Image.fromarray(_plain(np.asarray(image), *size))
    # One axis at a time, because before version 13 Pillow always resized the rows first.
    for step in passes(image.size, size):
        if step != image.size:
            image = image.resize(step, _PILLOW[resample])
    return image


def _plain(image: U8, width: int, height: int) -> U8:
    """The whole of both passes in float64, rounded to even and clipped once, at the end."""
    if image.shape[:2] == (height, width):
        return image
    mixed = image.astype(np.float64)
    for axis, size in enumerate((height, width)):
        have = mixed.shape[axis]
        exact = (np.arange(size) + 0.5) * (have / size) - 0.5
        first = np.floor(exact)
        total = np.zeros((*mixed.shape[:axis], size, *mixed.shape[axis + 1 :]))
        for step in range(-1, 3):
            at = np.clip(first + step, 0, have - 1).astype(np.intp)
            weights = np.array([_keys(each) for each in np.abs(exact - first - step)])
            total += mixed.take(at, axis) * weights.reshape([-1 if i == axis else 1 for i in range(mixed.ndim)])
        mixed = total
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _keys(x: float) -> float:
    """Torch's kernel of a distance up to 2: that of Keys (1981) with a = -0.75."""
    a = -0.75
    return ((a + 2.0) * x - (a + 3.0)) * x * x + 1 if x <= 1.0 else (((x - 5) * x + 8) * x - 4) * a


def passes(old: tuple[int, int], new: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size (width, height) after each of the two passes from `old` to `new`."""
    width, height = old[0] - new[0], old[1] - new[1]
    columns_first = height > 0 and height > 2 * width
    return (old[0], new[1]) if columns_first else (new[0], old[1]), new
