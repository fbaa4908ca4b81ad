"""What a picture file may ask for, checked before it is decoded.

A decoder's work follows a file's header and tables, not its length: 17 kB of JPEG can ask for a minute.
"""

from __future__ import annotations

import io
import re

from edgevlm.errors import ImageError

MAX_PIXELS = 89_478_485  # 1 GiB as 3 x 4 bytes: where Pillow, too, starts to speak of a decompression bomb
MAX_SIDE = 65_535  # what JPEG and GIF can hold; rows of few pixels cost a decoder far more than their bytes
MAX_BYTES = 512 << 20  # more than 5 bytes for each of the most pixels
MOST_SCANS = 50  # encoders write about 10, optimizers up to 20; each is a pass over all pixels

# Calls of a reader's loops in Python, about a million per second: chunks, segments, comments.
OPEN_READS, LOAD_READS = 100_000, 2_000_000


class Metered(io.BufferedReader):
    """A file in memory that may be read from `reads` times: what bounds a loop over its parts."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))  # type: ignore[arg-type]  # it has readinto, which is all that is used
        self.reads = OPEN_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads -= 1
        if self.reads < 0:
            raise TooManyParts
        return super().read(size)


class TooManyParts(ValueError):
    """A file was read from too often."""


def check_size(name: str, width: int, height: int) -> None:
    """Refuse a picture of no, too many, or far too lengthy rows and columns."""
    if 0 in (width, height):
        raise ImageError(f"{name} has no pixels ({width} x {height}): use a picture of at least 1 x 1.")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} has {width} x {height} pixels, at most {MAX_PIXELS / 1e6:.1f} million are read: "
            "scale it down first."
        )
    if max(width, height) > MAX_SIDE:
        raise ImageError(
            f"{name} has {width} x {height} pixels, at most {MAX_SIDE} a side are read: cut it into pieces first."
        )


def check_header(name: str, kind: str, content: bytes) -> None:
    """Refuse what the kind's own reader would start on before its size is known."""
    if kind == "WEBP" and content[12:16] == b"VP8X":  # its reader takes memory for the canvas on opening
        width, height = (int.from_bytes(content[at : at + 3], "little") + 1 for at in (24, 27))
        check_size(name, width, height)
    if kind == "JPEG" and (scans := count_scans(content)) > MOST_SCANS:
        raise ImageError(
            f"{name} is a JPEG of {scans} scans, at most {MOST_SCANS} are read: save it again as an ordinary JPEG."
        )


_MARKER = re.compile(rb"\xff([^\x00\xff])", re.S)
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}  # TEM, RST0 to RST7


def count_scans(content: bytes) -> int:
    """The scans of a JPEG: its markers walked as libjpeg walks them, without decoding (ITU-T T.81, annex B)."""
    scans, at = 0, 2
    while found := _MARKER.search(content, at):
        marker, at = found[1][0], found.end()
        if marker in (0xD8, 0xD9):  # another start, or the end
            break
        if marker not in _WITHOUT_LENGTH:
            scans += marker == 0xDA
            at += max(int.from_bytes(content[at : at + 2]), 2)
    return scans


def is_decoded_apart(kind: str, content: bytes) -> bool:
    """Whether a picture's header does not bound the work, so that a second process does it.

    TIFF, JPEG 2000 and ICO have tables and pictures inside, libtiff writes to standard error, and Pillow's readers of
    PPM and of run-length coded BMP are loops in Python.
    """
    return kind in ("TIFF", "JPEG2000", "ICO", "PPM") or (kind == "BMP" and content[30:34] in _RLE)


_RLE = (b"\1\0\0\0", b"\2\0\0\0")
