"""Decoded RGB -> uint8 views -> float32 pixels: the arithmetic that docs/preprocessing.md defines.

Equal bit for bit to the PIL image processors of Hugging Face (tests hold this); what those write as code, ImageSpec
holds as values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.spec import ImageSpec, ViewTokens
from edgevlm.inputs.views import View, cut
from edgevlm.types import F32, U8


def plan(width: int, height: int, spec: ImageSpec, *, max_tiles: int | None = None) -> list[View]:
    """The views of a picture of that size, before any pixel is touched; `max_tiles` is the most of them."""
    if max_tiles is not None and (type(max_tiles) is not int or max_tiles < 1):
        raise EdgeVLMError(f"The tile budget is {max_tiles!r}: it should be 1 (the whole picture only) or more.")
    return spec.rule.views(width, height, max_tiles)


def preprocess(image: U8 | Image.Image, spec: ImageSpec, *, max_tiles: int | None = None) -> list[U8]:
    """RGB picture, uint8 (H, W, 3) or Pillow -> its views, each uint8 (H, W, 3)."""
    picture = _as_picture(image)
    return cut(picture, plan(*picture.size, spec, max_tiles=max_tiles), spec.resample)


def cut_views(image: U8 | Image.Image, views: Sequence[View], spec: ImageSpec) -> list[U8]:
    """As `preprocess`, of a picture whose views are planned already."""
    return cut(_as_picture(image), views, spec.resample)


def _as_picture(image: U8 | Image.Image) -> Image.Image:
    picture = image if isinstance(image, Image.Image) else _from_array(image)
    if picture.mode != "RGB":
        raise EdgeVLMError(
            f"Preprocessing takes a decoded RGB picture, found mode {picture.mode}: open it with open_image."
        )
    return picture


@dataclass(frozen=True, eq=False)
class Prepared:
    """One picture as an encoder and a prompt take it."""

    views: list[U8]  # (H, W, 3) each
    tokens: list[ViewTokens]  # of each view


def prepare(image: U8 | Image.Image, spec: ImageSpec, *, max_tiles: int | None = None) -> Prepared:
    """RGB picture, uint8 (H, W, 3) or Pillow -> its views, and how many image tokens each has."""
    picture = _as_picture(image)
    views = plan(*picture.size, spec, max_tiles=max_tiles)
    return Prepared(cut(picture, views, spec.resample), spec.view_tokens(views, picture.size))


def normalize(view: U8, spec: ImageSpec) -> F32:
    """uint8 (H, W, 3) -> float32 (3, H, W), through a table of 256 values per channel; frames' channels each so."""
    pixels: F32 = normalize_all([view], spec)[0]
    return pixels


def normalize_all(views: Sequence[U8], spec: ImageSpec) -> F32:
    """T views of one size, each uint8 (H, W, 3) -> float32 (T, 3, H, W); so several frames' channels, one by one."""
    tables = normalize_tables(spec)
    height, width, channels = views[0].shape
    pixels = np.empty((len(views), channels, height, width), np.float32)
    for view, out in zip(views, pixels, strict=True):
        for channel in range(channels):
            np.take(tables[channel % 3], view[:, :, channel], out=out[channel], mode="clip")
    return pixels


def normalize_tables(spec: ImageSpec) -> F32:
    """float32 (3, 256): what each uint8 becomes in each channel; rescaled in float64, the rest in float32."""
    rescaled = (np.arange(256, dtype=np.float64) * spec.rescale_factor).astype(np.float32)
    mean = np.array(spec.mean, dtype=np.float32)[:, None]
    std = np.array(spec.std, dtype=np.float32)[:, None]
    return (rescaled - mean) / std


def array_key(array: np.ndarray[Any, np.dtype[Any]]) -> bytes:
    """A key for an array: the sha256 of its shape and values."""
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).digest()


def _from_array(image: U8) -> Image.Image:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise EdgeVLMError(
            f"Preprocessing takes RGB uint8 (height, width, 3), found {image.dtype} {image.shape}: "
            "open it with open_image."
        )
    return Image.fromarray(image)
