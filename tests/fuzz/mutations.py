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
    if kind == 0:
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
        other = rng.choice(places)
        source = value
        for step in other:
            source = source[step] if _has(source, step) else None
        holder[key] = json.loads(json.dumps(source))
    elif kind == 7 and isinstance(holder, list):
        holder += [holder[key]] * rng.choice((1, 9, 1000))
    elif kind == 8 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = holder[key] * rng.choice((-1, 2, 10, 0.5, 1 << 20)) + rng.choice((0, 1, -1))
    elif kind == 9:
        holder[key] = [holder[key]]
    else:
        holder[key] = rng.choice(VALUES + NUMBERS)
    return value


def _has(value: Any, step: Any) -> bool:
    return (isinstance(value, dict) and step in value) or (isinstance(value, list) and step < len(value))


def _places(value: Any, path: tuple[Any, ...]) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))
