"""The wire format of protobuf (https://protobuf.dev/programming-guides/encoding), as CoreML's and ONNX's files use it.

Damaged data raises ValueError or IndexError.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


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


def fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value): an int for numbers, a memoryview for everything with a length."""
    at, end = 0, len(data)
    while at < end:
        tag, at = varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = varint(data, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, at = varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if size > end - at:
            raise ValueError("it is truncated")
        yield tag >> 3, data[at : at + size]
        at += size


def text(data: Any) -> str:
    return bytes(data).decode("utf-8")


def pairs(data: memoryview) -> tuple[str, memoryview]:
    """A protobuf map entry with a string key."""
    key, value = "", memoryview(b"")
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
