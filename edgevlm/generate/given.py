"""The forms that pictures and questions may be given in, brought into one."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
from PIL import Image

from edgevlm.errors import EdgeVLMError, ImageError
from edgevlm.inputs.clip import Clip
from edgevlm.inputs.decode import Source, decode_image, read_file
from edgevlm.inputs.render import Conversation
from edgevlm.types import U8

Picture = Source | U8
Pictures = Picture | Iterable[Picture]

_ONE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
_FORMS = "a path, the bytes of a file, a data: URL, a Pillow image or a uint8 array"
_KEYS = ("image", "path", "url", "image_url")  # where an item of a message may have its picture
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True, eq=False)
class Kept:
    """A picture of an earlier turn, as it was then: its file's bytes or the picture, and how many tiles it may take."""

    content: bytes | Image.Image
    max_tiles: int | None


def keep(source: Any, max_tiles: int | None) -> Kept:
    """A picture in any form, so that it stays what it is whatever becomes of its file or array."""
    _, content = load_picture(source)
    return Kept(content if isinstance(content, bytes) else content.copy(), max_tiles)


def pictures_of(images: Any) -> list[Any]:
    """The pictures as a list; one by itself is a list of one. Each is looked at by `open_picture`."""
    if isinstance(images, _ONE) or hasattr(images, "__array__"):
        return [images]
    if not isinstance(images, Iterable) or isinstance(images, Mapping) or hasattr(images, "read"):
        raise EdgeVLMError(f"The pictures are {_a(images)}: give {_FORMS}, a list of them, or [] for none.")
    return list(images)


def conversation_of(question: Any, pictures: Sequence[Any]) -> tuple[Conversation, list[Any]]:
    """The question or messages as `Prompter.encode` takes them, and every picture in the order of its place there.

    `pictures` go to the image items without a picture of their own. Raises EdgeVLMError for what asks nothing.
    """
    if isinstance(question, str):
        if not _text(question).strip():
            raise EdgeVLMError("The question is empty: write what you want to know.")
        return question, list(pictures)
    if not isinstance(question, Sequence) or isinstance(question, bytes | bytearray | memoryview):
        raise EdgeVLMError(
            f"The question is {_a(question)}: give a text, or a list of messages such as "
            '[{"role": "user", "content": "What is this?"}].'
        )
    messages, order, waiting = [], list[Any](), iter(pictures)
    asks = not question  # Prompter.encode says what is wrong with no messages, and with malformed ones
    for message in question:
        content = message.get("content") if isinstance(message, Mapping) else None
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(items, Sequence) or isinstance(items, str | bytes):
            messages.append(message)
            asks = True
            continue
        plain = []
        for item in items:
            kind = item.get("type") if isinstance(item, Mapping) else None
            if kind == "video" and isinstance(clip := item.get("video"), Clip):
                order.append(clip)
                item = {"type": "video", "like_text": clip.tokens.like_text}
            elif kind in ("image", "image_url"):
                own = _own(item)
                order += [own] if own is not None else [next(waiting, None)]
                item = {"type": "image"}
            elif kind == "text" and isinstance(item.get("text"), str):
                asks |= bool(_text(item["text"]).strip())
            asks |= kind is None
            plain.append(item)
        messages.append({**message, "content": plain})
    found = [picture for picture in order if picture is not None] + list(waiting)
    if not asks and not found:
        raise EdgeVLMError("The messages hold no text and no picture: write what you want to know.")
    return messages, found


def _own(item: Mapping[str, Any]) -> Any:
    """The picture that an image item of a message holds, or None; an image_url item has to hold one."""
    named = [key for key in _KEYS if item.get(key) is not None]
    if len(named) > 1:
        raise EdgeVLMError(f"An image item of a message has both '{named[0]}' and '{named[1]}': give one picture.")
    value = item[named[0]] if named else None
    if isinstance(value, Mapping):  # OpenAI's form, {"image_url": {"url": ...}}
        value = value.get("url")
    others = sorted(set(item) & {"base64", "data", "source", "file"})
    if value is None and (item["type"] == "image_url" or named or others):
        key = f"'{others[0]}'" if others else "no picture"
        raise EdgeVLMError(
            f"An item of type '{item['type']}' of a message has {key}: give its picture as "
            '{"type": "image", "image": ...}, or {"type": "image_url", "image_url": {"url": ...}}.'
        )
    return value


def open_picture(source: Any, background: tuple[int, int, int]) -> Image.Image:
    """Decode a picture in any form to RGB. Raises EdgeVLMError for what is none."""
    name, content = load_picture(source)
    return decode_image(content, background, name)


def load_picture(source: Any) -> tuple[str, bytes | Image.Image]:
    """What sentences call a picture in any form, and its file's bytes or the picture itself, not decoded yet."""
    if isinstance(source, np.ndarray):
        return "The image", _from_array(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return "The image", bytes(source)
    if isinstance(source, str):
        source = _from_address(source)
    if not isinstance(source, str | os.PathLike | bytes | Image.Image):
        raise ImageError(f"A picture is {_a(source)}: give {_FORMS}.")
    return ("The image", source) if isinstance(source, bytes | Image.Image) else read_file(source)


def is_data_url(text: str) -> bool:
    return text[:5].lower() == "data:"


def is_address(text: str) -> bool:
    """Whether a text is no path: "scheme://...", or a data: URL."""
    return is_data_url(text) or bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text))


def _from_address(text: str) -> str | bytes:
    """A path as it is, the file of a file: URL, the bytes of a data: URL."""
    if is_data_url(text):
        head, comma, data = text.partition(",")
        try:
            if not comma or not head.lower().endswith(";base64"):
                raise ValueError("no ';base64,'")
            return base64.b64decode(unquote_to_bytes(data), validate=True)
        except (ValueError, binascii.Error) as error:
            raise ImageError(
                f"The data: URL of a picture is damaged ({str(error)[:80]}): write it as 'data:image/png;base64,...'."
            ) from None
    kind = text.partition("://")[0].lower()
    if kind in ("http", "https", "ftp", "s3", "gs"):
        raise ImageError(f"The picture '{text[:200]}' is on the network, which is never read: download it first.")
    if kind == "file":
        from urllib.request import url2pathname  # with it come HTTP, mail and TLS: 30 ms

        return url2pathname(urlsplit(text).path)
    if not text:
        raise ImageError("The path of a picture is empty: name a file.")
    return text


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    """uint8 RGB (H, W, 3), RGBA (H, W, 4), grey (H, W) or (H, W, 1), grey with alpha (H, W, 2)."""
    shape = array.shape
    if array.dtype != np.uint8 or not array.size or array.ndim not in (2, 3) or shape[2:] > (4,):
        advice = "give uint8 in RGB order (height, width, 3), grey (height, width), or RGBA"
        if array.size and array.dtype.kind == "f":
            advice = "give uint8 from 0 to 255; values from 0 to 1 become it by (array * 255).astype('uint8')"
        elif array.size and array.ndim == 4:
            advice = "give several pictures as a list, list(array)"
        elif array.size and array.ndim == 3 and shape[0] in _MODES:
            advice = "channels come last, array.transpose(1, 2, 0)"
        raise ImageError(f"A picture is an array of {array.dtype} {shape}: {advice}.")
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if shape[2:] == (1,) else array))


def _text(text: str) -> str:
    """`text`, refused where it is no Unicode: a half of a pair, which JSON escapes and file names may hold."""
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise EdgeVLMError("The question holds a lone surrogate, which is no character: give it as valid Unicode.")
    return text


def _a(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
