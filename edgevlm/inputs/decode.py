"""A picture, from a file or from memory -> decoded RGB, as docs/preprocessing.md defines it."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.kinds import looks_like_picture
from edgevlm.types import U8

__all__ = ["Source", "decode_image", "looks_like_picture", "open_image"]

Source = str | os.PathLike[str] | bytes | Image.Image

MAX_PIXELS = 89_478_485  # 1 GiB as 3 x 4 bytes: where Pillow, too, starts to speak of a decompression bomb
WHITE = (255, 255, 255)

# A list, not whatever Pillow knows: some of its readers start other programs (EPS runs Ghostscript).
# AVIF is last: a Pillow built without it fails on reaching its name. A JPEG may turn out to be an MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "ICO", "AVIF")

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: Source, background: tuple[int, int, int] = WHITE) -> U8:
    """Decode a file, the bytes of one, or a Pillow image to RGB uint8 (H, W, 3).

    EXIF orientation is applied, transparency is laid over `background`, an animation gives its first frame, and colour
    profiles are ignored, as by Hugging Face's processors. EdgeVLMError for what is not a picture.
    """
    return np.asarray(decode_image(source, background))


def decode_image(source: Source, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """As `open_image`, but a Pillow image of mode RGB, which spares two copies of a large photo."""
    if isinstance(source, Image.Image):
        return _decode("The image", source, background)
    if isinstance(source, bytes):
        return _decode("The image", _open("The image", io.BytesIO(source)), background)
    path = Path(source)
    name = f"The image '{path}'"
    with _open_file(path, name) as stream:
        return _decode(name, _open(name, stream), background)


def _decode(name: str, image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    size = f"{image.width} x {image.height}"
    if 0 in image.size:
        raise EdgeVLMError(f"{name} has no pixels ({size}): use a picture of at least 1 x 1.")
    if image.width * image.height > MAX_PIXELS:
        raise EdgeVLMError(_too_large(name, f"{size} pixels"))
    try:
        image.load()
        orientation = _orientation(image)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        return _to_rgb(image, background)
    except MemoryError as e:
        raise EdgeVLMError(f"{name} needs more memory than there is: use a smaller picture.") from e
    except Exception as e:  # Pillow's readers raise nearly anything on a damaged file
        raise EdgeVLMError(
            f"{name} is damaged or incomplete and cannot be decoded ({_reason(e)}): use an intact copy."
        ) from e


def _open_file(path: Path, name: str) -> BinaryIO:
    try:
        if path.is_dir():
            raise EdgeVLMError(f"{name} is a folder: give the path of one picture.")
        if not path.exists():
            raise EdgeVLMError(f"{name} does not exist: check the path (only local files are read).")
        if not path.is_file():
            raise EdgeVLMError(f"{name} is not a regular file: save the picture to a file first.")
        return path.open("rb")
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        raise EdgeVLMError(f"{name} cannot be read ({_reason(e)}): check the path and its permissions.") from e


def _open(name: str, stream: BinaryIO) -> Image.Image:
    """Read the header only."""
    try:
        return Image.open(stream, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise EdgeVLMError(_too_large(name, "too many pixels")) from e
    except Exception as e:  # an unreadable header, too, raises nearly anything
        raise EdgeVLMError(
            f"{name} is not a picture that can be opened: use JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF."
        ) from e


def _too_large(name: str, found: str) -> str:
    return f"{name} has {found}, at most {MAX_PIXELS / 1e6:.1f} million are read: scale it down first."


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # EXIF is a courtesy: a picture with a damaged block is still a picture
        return 1


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        base = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(base, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(error: Exception) -> str:
    text = (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
