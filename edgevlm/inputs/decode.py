"""A picture, from a file or from memory -> decoded RGB, as docs/preprocessing.md defines it."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image

from edgevlm.errors import EdgeVLMError, EdgeVLMWarning, ImageError
from edgevlm.inputs.kinds import HEAD, kind_of, looks_like_picture
from edgevlm.inputs.picture_limits import (
    LOAD_READS,
    MAX_BYTES,
    MAX_PIXELS,
    Metered,
    TooManyParts,
    check_header,
    check_size,
    is_decoded_apart,
)
from edgevlm.io.child import ChildFailed, Limits, ask_child
from edgevlm.io.regular import open_regular

if TYPE_CHECKING:  # the second process does without numpy
    from edgevlm.types import U8

__all__ = ["Source", "decode_image", "looks_like_picture", "open_image"]

Source = str | os.PathLike[str] | bytes | Image.Image

Color = tuple[int, int, int]
WHITE = (255, 255, 255)
APART = Limits(seconds=30, memory=4 << 30)  # the largest JPEG 2000 takes 16 s and 3 GB

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


def open_image(source: Source, background: Color = WHITE) -> U8:
    """Decode a file, the bytes of one, or a Pillow image to RGB uint8 (H, W, 3).

    EXIF orientation is applied, transparency is laid over `background`, an animation gives its first frame, and colour
    profiles are ignored, as by Hugging Face's processors. EdgeVLMError for what is not a picture, EdgeVLMWarning for
    one whose grey values are cut at 255.
    """
    import numpy as np

    return np.asarray(decode_image(source, background))


def decode_image(source: Source, background: Color = WHITE, name: str = "The image") -> Image.Image:
    """As `open_image`, but a Pillow image of mode RGB, which spares two copies of a large photo.

    name: what sentences call an image or the bytes of one.
    """
    if isinstance(source, Image.Image):
        picture, cut = to_rgb(name, source, background)
    else:
        if not isinstance(source, bytes):
            name, source = read_file(source)
        picture, cut = _decode(name, source, background)
    if cut:
        warnings.warn(
            f"{name} has grey values {cut}, which are cut to whole numbers from 0 to 255, as by transformers: "
            "scale it to 8 bits first if it should be seen.",
            EdgeVLMWarning,
            stacklevel=3,
        )
    return picture


def read_file(path: str | os.PathLike[str]) -> tuple[str, bytes]:
    """What sentences call a picture's file, and its bytes."""
    path = Path(path)
    name = f"The image '{path}'"
    try:
        if path.is_dir():
            raise ImageError(f"{name} is a folder: give the path of one picture.")
        if not path.exists():
            raise ImageError(f"{name} does not exist: check the path (only local files are read).")
        if not path.is_file():
            raise ImageError(f"{name} is not a regular file: save the picture to a file first.")
        with open_regular(path) as stream:
            if os.fstat(stream.fileno()).st_size > MAX_BYTES:
                raise ImageError(_too_many_bytes(name))
            return name, stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        raise ImageError(f"{name} cannot be read ({_reason(e)}): check the path and its permissions.") from e


def _decode(name: str, content: bytes, background: Color) -> tuple[Image.Image, str]:
    if len(content) > MAX_BYTES:
        raise ImageError(f"{name} has more than {MAX_BYTES >> 20} MiB, which is the most that is read: scale it down.")
    kind = kind_of(content[:HEAD])
    if kind == "HEIC":
        raise ImageError(f"{name} is a HEIC picture, which is not read: save it as JPEG or PNG.")
    if kind is None:
        raise ImageError(_not_a_picture(name))
    check_header(name, kind, content)
    if is_decoded_apart(kind, content):
        return _decode_apart(name, kind, content, background)
    stream = Metered(content)
    image = open_header(name, kind, stream)
    stream.reads = LOAD_READS
    return to_rgb(name, image, background)


def _decode_apart(name: str, kind: str, content: bytes, background: Color) -> tuple[Image.Image, str]:
    settings = json.dumps({"name": name, "kind": kind, "background": background}).encode() + b"\n"
    try:
        head, _, pixels = ask_child("edgevlm.inputs.decode_apart", settings + content, APART).partition(b"\n")
    except ChildFailed as e:
        raise ImageError(f"{name}, a {kind} file, {e.reason}: save it as PNG or JPEG.") from None
    answer = json.loads(head)
    if "error" in answer:
        raise ImageError(answer["error"])
    return Image.frombytes("RGB", tuple(answer["size"]), pixels), answer["cut"]


def open_header(name: str, kind: str, stream: BinaryIO) -> Image.Image:
    """Read the header by Pillow's reader of this kind alone: others start programs, as that of EPS does."""
    try:
        return Image.open(stream, formats=(kind,))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise ImageError(
            f"{name} has too many pixels, at most {MAX_PIXELS / 1e6:.1f} million are read: scale it down first."
        ) from e
    except TooManyParts as e:
        raise ImageError(_too_many_parts(name)) from e
    except Exception as e:  # an unreadable header raises nearly anything; a Pillow without AVIF a KeyError
        raise ImageError(_not_a_picture(name)) from e


def to_rgb(name: str, image: Image.Image, background: Color) -> tuple[Image.Image, str]:
    """A picture whose header was read, decoded; and the range of its values where they do not fit 8 bits."""
    check_size(name, *image.size)
    try:
        image.load()
        check_size(name, *image.size)  # a picture inside may be larger than its container says
        cut = _cut_values(image)
        orientation = _orientation(image)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        return _flat(image, background), cut
    except EdgeVLMError:
        raise
    except MemoryError as e:
        raise ImageError(f"{name} needs more memory than there is: use a smaller picture.") from e
    except TooManyParts as e:
        raise ImageError(_too_many_parts(name)) from e
    except Exception as e:  # Pillow's readers raise nearly anything on a damaged file
        raise ImageError(
            f"{name} is damaged or incomplete and cannot be decoded ({_reason(e)}): use an intact copy."
        ) from e


def _too_many_bytes(name: str) -> str:
    return f"{name} has more than {MAX_BYTES >> 20} MiB, which is the most that is read: scale it down first."


def _not_a_picture(name: str) -> str:
    return f"{name} is not a picture that can be opened: use JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF."


def _too_many_parts(name: str) -> str:
    return f"{name} is made of far more pieces than a picture needs: save it again as an ordinary JPEG or PNG."


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # EXIF is a courtesy: a picture with a damaged block is still a picture
        return 1


def _cut_values(image: Image.Image) -> str:
    """The range of grey values that 8 bits do not hold, in words; empty for others."""
    if not image.mode.startswith(("I", "F")):
        return ""
    counted = image.convert("I") if image.mode.startswith("I;16") else image  # Pillow does not count all of their kinds
    low, high = (float(value) for value in counted.getextrema())  # type: ignore[arg-type]
    fits = 0 <= low <= high <= 255 and (image.mode != "F" or high > 1)  # between 0 and 1, all would be black
    return "" if fits else f"from {low:g} to {high:g}"


def _flat(image: Image.Image, background: Color) -> Image.Image:
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        base = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(base, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(error: Exception) -> str:
    """What a reader said, which may quote the file: one short line."""
    text = (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip()
    line = text.splitlines()[0].rstrip(".")[:200] if text else type(error).__name__
    return line if line.isprintable() else ascii(line)
