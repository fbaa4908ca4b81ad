"""The wire format of protobuf (https://protobuf.dev/programming-guides/encoding), as CoreML's and ONNX's files use it.

Damaged data raises ValueError or IndexError.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgevlm.io import limits


class Message:
    """The bytes of a message, or of another field with a length. All of one file share a number of fields to read."""

    __slots__ = ("_left", "view")

    def __init__(self, data: bytes | memoryview, left: list[int] | None = None) -> None:
        self.view, self._left = memoryview(data), left or [limits.GRAPH_FIELDS]

    def inner(self, start: int, end: int) -> Message:
        return Message(self.view[start:end], self._left)

    def count(self) -> None:
        self._left[0] -= 1
        if self._left[0] < 0:
            raise ValueError(f"it has more than {limits.GRAPH_FIELDS} fields")

    def __bytes__(self) -> bytes:
        return bytes(self.view)


def varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")


def fields(data: Message) -> Iterator[tuple[int, Any]]:
    """(field number, value): an int for numbers, a Message for everything with a length."""
    at, end = 0, len(data.view)
    while at < end:
        data.count()
        tag, at = varint(data.view, at)
        wire = tag & 7
        if wire == 0:
            value, at = varint(data.view, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, at = varint(data.view, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if size > end - at:
            raise ValueError("it is truncated")
        yield tag >> 3, data.inner(at, at + size)
        at += size


def text(data: Message | bytes | int) -> str:
    if isinstance(data, int):  # a damaged file; bytes(n) would be n zeros
        raise ValueError("a text is a number")
    return bytes(data).decode("utf-8")


def whole(value: Message | int) -> int:
    if not isinstance(value, int):
        raise ValueError("a number is a text")
    return value


def pairs(data: Message) -> tuple[str, Message]:
    """A protobuf map entry with a string key."""
    key, value = "", Message(b"")
    for number, item in fields(data):
        if number == 1:
            key = text(item)
        elif number == 2:
            value = item
    return key, value


def signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def encode(number: int, value: int | str | bytes) -> bytes:
    """A field: a number of 0 or more, text, or bytes, which may be a message."""
    if isinstance(value, int):
        return _encode_varint(number << 3) + _encode_varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _encode_varint(number << 3 | 2) + _encode_varint(len(data)) + data


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
