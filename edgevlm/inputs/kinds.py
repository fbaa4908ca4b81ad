"""What kind of picture a file is, by its first bytes; names say nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path

HEAD = 4096  # bytes that decide

# Kinds are named as by Pillow. HEIC is known, so that it can be named, but not read.
_SIGNATURES = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.S)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("BMP", re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\x00\x00\x00", re.S)),  # the sizes of its second header
    ("TIFF", re.compile(rb"II[*+]\x00|MM\x00[*+]|II\x00\x2a|MM\x2a\x00")),
    ("PPM", re.compile(rb"P(?:[1-6f]|0CMYK|yP|yRGBA|yCMYK)\s+[\d#]")),
    ("JPEG2000", re.compile(rb"\xff\x4f\xff\x51|\x00\x00\x00\x0cjP  \r\n\x87\n")),
    ("ICO", re.compile(rb"\x00\x00\x01\x00[^\x00]\x00", re.S)),
    ("AVIF", re.compile(rb"....ftyp(?:avi[fs]|.{8}(?:....){0,30}?avi[fs])", re.S)),
    ("HEIC", re.compile(rb"....ftyp(?:hei[cxms]|hev[cx]|mif1|msf1)", re.S)),
)

# How the name of a picture ends, of kinds that are not read among them: for files that are damaged or not there.
NAMED = re.compile(
    r"\.(?:jpe?g?|jfif|jp2|j2k|png|apng|webp|gif|bmp|dib|tiff?|p[bgnp]m|ico|hei[cf]|avif|svg)$", re.IGNORECASE
)


def kind_of(head: bytes) -> str | None:
    """The kind of a picture whose file begins with `head`; None where it is none that is known."""
    return next((kind for kind, signature in _SIGNATURES if signature.match(head)), None)


def looks_like_picture(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a picture does, whatever its name. False for what is no file or cannot be read."""
    try:
        if not Path(path).is_file():
            return False
        with open(path, "rb") as stream:
            return kind_of(stream.read(HEAD)) is not None
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return False
