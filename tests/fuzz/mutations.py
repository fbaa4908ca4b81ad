"""Damage of one file, chosen by a seeded generator: the same seed gives the same bytes on every machine."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

NUMBERS = (0, -1, 1, 2, 3, 7, 255, 256, 65535, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 63) - 1,
           1 << 64, 10**30, 10**308, 10**400, -(10**18), 0.5, -0.0, 1e-300, 1e300, float("nan"),
           float("inf"))  # fmt: skip
TEXTS = (
    "",
    "x",
    "\0",
    "../../../etc/passwd",
    "/dev/zero",
    "\ud800",
    "é" * 9,
    "x" * 70_000,
    "%9000000d",
    "null",
    "\n\x1b[2J",
)
VALUES = (None, True, False, [], {}, [[]], [None], {"": None}, "", "x", 0, -1, 1.5, 10**19, [0] * 50, {"kind": "x"})
INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flipped bits, changed numbers, cut, doubled, moved and removed pieces."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        if not out:
            break
        at, length = rng.randrange(len(out)), rng.choice((1, 2, 4, 8, 50, 1000))
        # Files begin with what describes the rest.
        at = rng.randrange(min(len(out), 400)) if rng.random() < 0.4 else at
        kind = rng.randrange(8)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            number = struct.pack("<Q", rng.choice(INTEGERS))[: rng.choice((2, 4, 8))]
            out[at : at + len(number)] = number
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            del out[at : at + length]
        elif kind == 5:
            out[at:at] = out[at : at + length]
        elif kind == 6:
            other = rng.randrange(len(out))
            out[at : at + length] = out[other : other + length]
        else:
            out[at:at] = rng.randbytes(length)
    return bytes(out)


def of_json(data: bytes, rng: random.Random) -> bytes:
    """Removed, added, doubled and exchanged keys and values; now and then bytes."""
    if rng.random() < 0.1:
        return of_bytes(data, rng)
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = _change(value, rng)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.7).encode("utf-8", "surrogatepass")
    return _whole_text(text, rng) if rng.random() < 0.1 else text


def of_json_lines(data: bytes, rng: random.Random) -> bytes:
    """One of the lines, as JSON; or lines removed, doubled, joined and cut."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    kind = rng.randrange(8)
    if kind == 0:
        return of_bytes(data, rng)
    if kind == 1:
        del lines[at]
    elif kind == 2:
        lines.insert(at, lines[rng.randrange(len(lines))])
    elif kind == 3:
        return data[: rng.randrange(len(data) + 1)]
    elif lines[at].strip():
        lines[at] = of_json(lines[at], rng).replace(b"\n", b" ")
    return b"\n".join(lines)


def of_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with a changed JSON header whose length is right again; or changed bytes."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.3:
        return of_bytes(data[: 8 + length + 64], rng) + data[8 + length + 64 :]
    header = of_json(data[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def of_protobuf(data: bytes, rng: random.Random) -> bytes:
    """A message with well-formed fields of which some are changed, removed, doubled or exchanged; or changed bytes."""
    fields = _fields(data)
    if rng.random() < 0.2 or not fields:
        return of_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 2, 5))):
        fields = _change_fields(fields, rng)
    return b"".join(map(_encode, fields))


Field = tuple[int, int, Any]  # number, wire type, an int or bytes


def _change_fields(fields: list[Field], rng: random.Random) -> list[Field]:
    fields = list(fields)
    at = rng.randrange(len(fields))
    number, wire, value = fields[at]
    inner = _fields(value) if wire == 2 else None
    if inner and rng.random() < 0.9:
        fields[at] = number, wire, b"".join(map(_encode, _change_fields(inner, rng)))
        return fields
    kind = rng.randrange(6)
    if kind == 0:
        del fields[at]
    elif kind == 1:
        fields.insert(at, fields[rng.randrange(len(fields))])
    elif kind == 2:
        fields[at] = rng.choice((1, 2, 3, 4, 5, 7, 20, number + 1)), wire, value
    elif wire == 0:
        fields[at] = number, wire, rng.choice((*INTEGERS, value + 1, max(0, value - 1), value * 2))
    elif wire == 2:
        fields[at] = (
            number,
            wire,
            rng.choice((b"", value + value, value[:-1], of_bytes(value, rng), b"x" * 5000, b"../x")),
        )
    else:
        fields[at] = number, wire, of_bytes(value, rng)[: len(value)].ljust(len(value), b"\0")
    return fields


def _fields(data: bytes) -> list[Field] | None:
    """The fields of a message; None for what is none."""
    found: list[Field] = []
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            found.append((number, wire, value))
            continue
        size = 8 if wire == 1 else 4 if wire == 5 else -1
        if wire == 2:
            size, at = _varint(data, at)
        if not 0 < number < 1000 or size < 0 or at + size > len(data):
            return None
        found.append((number, wire, data[at : at + size]))
        at += size
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return 0, at


def _encode(field: Field) -> bytes:
    number, wire, value = field
    head = _written(number << 3 | wire)
    if wire == 0:
        return head + _written(value)
    return head + (_written(len(value)) if wire == 2 else b"") + value


def _written(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _whole_text(text: bytes, rng: random.Random) -> bytes:
    depth = rng.choice((40, 100, 5000))
    return rng.choice((
        b"\xef\xbb\xbf" + text, b"[" * depth + text + b"]" * depth, b'{"a":' * depth + text + b"}" * depth,
        text + text, text.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass"), b"",
        text.replace(b"{", b'{"spec":1,"spec":2,"r":1,"r":2,', 1),
        b"[" + b"{}," * 50_000 + b"0]", text.replace(b'"', b"", 1), b"9" * 5000,
    ))  # fmt: skip


def _change(value: Any, rng: random.Random) -> Any:
    """The value with one place of it changed."""
    places = list(_places(value, ()))
    if not places:
        return rng.choice(VALUES)
    path = rng.choice(places)
    holder = value
    for step in path[:-1]:
        holder = holder[step]
    key, kind = path[-1], rng.randrange(10)
    if rng.random() < 0.5:
        holder[key] = _alike(holder[key], places, value, rng)
    elif kind == 0:
        del holder[key]
    elif kind == 1:
        holder[key] = rng.choice(VALUES)
    elif kind in (2, 3):
        holder[key] = rng.choice(NUMBERS)
    elif kind == 4:
        holder[key] = rng.choice(TEXTS)
    elif kind == 5 and isinstance(holder, dict):
        holder[rng.choice(("kind", "x" * 200, *TEXTS))] = holder[key] if rng.random() < 0.5 else holder.pop(key)
    elif kind == 6:
        holder[key] = _copy(value, rng.choice(places))
    elif kind == 7 and isinstance(holder, list):
        holder += [holder[key]] * rng.choice((1, 9, 1000))
    elif kind == 8:
        holder[key] = [holder[key]]
    else:
        holder[key] = rng.choice(VALUES + NUMBERS)
    return value


def _alike(found: Any, places: list[tuple[Any, ...]], value: Any, rng: random.Random) -> Any:
    """Another value of the same type."""
    if isinstance(found, bool):
        return not found
    if isinstance(found, int):
        near = (found + 1, found - 1, found * 2, found // 2, found * 1000, -found)
        return rng.choice((*near, *(number for number in NUMBERS if isinstance(number, int))))
    if isinstance(found, float):
        return rng.choice((found * 2, -found, found / 1e9, *(n for n in NUMBERS if isinstance(n, float))))
    if isinstance(found, str):
        others = [text for text in (_copy(value, path) for path in rng.sample(places, min(20, len(places))))
                  if isinstance(text, str)]  # fmt: skip
        return rng.choice((found + "x", found[1:], *TEXTS, *others))
    if isinstance(found, list) and found:
        return rng.choice((found[1:], found + found[:1], found * 50, found[::-1], []))
    if isinstance(found, dict) and found:
        return dict(rng.sample(list(found.items()), len(found) - 1))
    return found


def _copy(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step] if _has(value, step) else None
    return json.loads(json.dumps(value))


def _has(value: Any, step: Any) -> bool:
    return (isinstance(value, dict) and step in value) or (isinstance(value, list) and step < len(value))


def _places(value: Any, path: tuple[Any, ...]) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))
