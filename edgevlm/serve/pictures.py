"""The pictures of a request: addresses to the bytes of files, each looked at before anything decodes it."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable

from edgevlm.errors import EdgeVLMError
from edgevlm.generate.given import Kept
from edgevlm.inputs.decode import open_header
from edgevlm.inputs.kinds import HEAD, kind_of
from edgevlm.inputs.picture_limits import Metered, check_header, is_decoded_apart
from edgevlm.serve.refusals import Refusal, refusal_of, wrong

CODE = "invalid_image"
Fetch = Callable[[str, str], bytes]  # (address, param) -> the file; raises Refusal

_HEAD = re.compile(r"data:image/[a-z0-9.+-]{1,64}(?:;[a-z0-9=.+-]{1,64}){0,4};base64", re.IGNORECASE)


def read_picture(address: str, param: str, max_pixels: int, fetch: Fetch, max_tiles: int | None) -> Kept:
    """The picture that a part of a message names. Raises Refusal for everything that is none."""
    if address[:5].lower() == "data:":
        content = _decoded(address, param)
    elif re.match(r"https?:", address[:6], re.IGNORECASE):
        content = fetch(address, param)
    else:
        raise wrong(
            param,
            "A picture is given as 'data:image/jpeg;base64,...': this server reads no files and no other addresses.",
            CODE,
        )
    check_picture(content, param, max_pixels)
    return Kept(content, max_tiles)


def _decoded(address: str, param: str) -> bytes:
    head, _, data = address.partition(",")
    if not _HEAD.fullmatch(head):
        raise wrong(param, "The data: URL of a picture does not begin as 'data:image/jpeg;base64,' does.", CODE)
    try:
        return base64.b64decode(data, validate=True)
    except (ValueError, binascii.Error) as error:
        raise wrong(param, f"The base64 of a picture is damaged ({str(error)[:80]}).", CODE) from None


def check_picture(content: bytes, param: str, max_pixels: int) -> None:
    """Refuse what is no picture, and one that is too large, by its header."""
    kind = kind_of(content[:HEAD])
    if kind is None or kind == "HEIC" or is_decoded_apart(kind, content):
        what = "of a kind that is not known" if kind is None else f"a {kind} file"
        raise wrong(param, f"A picture is {what}: send JPEG, PNG, WebP, GIF, BMP or AVIF.", CODE)
    try:
        check_header("The picture", kind, content)
        width, height = open_header("The picture", kind, Metered(content)).size
    except EdgeVLMError as error:
        raise refusal_of(error, param) from None
    if width * height > max_pixels:
        raise Refusal(
            413,
            f"A picture has {width} x {height} pixels, at most {max_pixels} are taken: scale it down.",
            param=param,
            code="image_too_large",
        )
