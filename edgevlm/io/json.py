"""JSON files from outside: parsed within bounds, and read with errors that name the file and the key."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits
from edgevlm.io.regular import read_regular

# Digits in a row, looked for where each is a zero: twenty times as fast as by an expression.
_LONG, _ZEROS = b"0" * (limits.DIGITS + 1), bytes.maketrans(b"123456789", b"0" * 9)
_SURROGATE = re.compile(rb"\\u[dD][89abAB-Fc-f]")


def parse_json(data: bytes, largest: int = limits.LINE, *, finite: bool = True, halves: bool = False) -> Any:
    """The value of a JSON text. ValueError says in a few words what is wrong with it.

    Beside what is no JSON, that is: over `largest` bytes, deep nesting, a key that occurs twice, numbers beyond
    float64, and half of a surrogate pair, which no file could be written with. finite: refuse NaN and Infinity, too,
    which are no JSON but stand in some models' config.json. halves: accept halves of pairs, which `json_text` escapes.
    """
    if len(data) > largest:
        raise ValueError(f"it has over {largest} bytes")
    if data.count(b"{") + data.count(b"[") > largest // limits.JSON_BYTES_PER_CONTAINER:
        raise ValueError("it holds too many objects and lists")
    if data.startswith(b"\xef\xbb\xbf"):
        raise ValueError("it begins with a byte order mark, which JSON has not; save it as UTF-8 without one")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_float=_real,
            parse_int=_whole if _LONG in data.translate(_ZEROS) else None,  # a call for each number costs more
            parse_constant=_no_number if finite else float,
        )  # fmt: skip
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check_depth(value)
    if not halves and _SURROGATE.search(data):
        _check_unicode(value)
    return value


_TOO_DEEP = f"objects and lists are nested more than {limits.JSON_DEPTH} deep"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} occurs twice in one object")
    return found


def _whole(text: str) -> int:
    if len(text) > limits.DIGITS:
        raise ValueError(f"a number has over {limits.DIGITS} digits")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is larger than any")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(limits.JSON_DEPTH):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += [v for v in each.values() if isinstance(v, dict | list)]
            elif isinstance(each, list):
                inner += [v for v in each if isinstance(v, dict | list)]
        if not inner:
            return
        level = inner
    raise ValueError(_TOO_DEEP)


def _check_unicode(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair, which is no character") from None


class JsonFile:
    """A JSON object of a file, or one inside it (`where`), read with types and bounds checked.

    data: the object; empty where an optional file or object is absent, which `given` tells. null counts as absent, as
    in transformers. names: what the file calls a key, where that is not what getters call it. Every getter raises
    EdgeVLMError that names file and key; without a default, the key is required.
    """

    def __init__(
        self,
        path: Path,
        data: dict[str, Any],
        where: str = "",
        *,
        given: bool = True,
        names: dict[str, str] | None = None,
    ) -> None:
        self.path, self.data, self.where, self.given, self._names = path, data, where, given, names or {}

    def section(self, key: str) -> JsonFile:
        """The object under `key`, empty where there is none."""
        value = self.value(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return JsonFile(self.path, value or {}, f"{self.where}{key}.", given=value is not None)

    def without(self, key: str) -> JsonFile:
        """The same object as if it had no `key`."""
        return JsonFile(self.path, {k: v for k, v in self.data.items() if k != key}, self.where, given=self.given)

    def renamed(self, **names: str) -> JsonFile:
        """The same object under other keys: getters take `key`, the file has `names[key]`."""
        return JsonFile(self.path, self.data, self.where, given=self.given, names=names)

    def value(self, key: str, default: Any = None) -> Any:
        """What stands under `key`, unchecked."""
        value = self.data.get(self._names.get(key, key))
        return default if value is None else value

    def wrong(self, key: str, expected: str) -> EdgeVLMError:
        name = self._names.get(key, key)
        found = repr(self.data[name]) if name in self.data else "nothing"
        return EdgeVLMError(
            f"'{self.path}' has {self.where}{name} = {found[:100]}, expected {expected}: take the file that the "
            "original model came with, or another model."
        )

    def flag(self, key: str, default: bool) -> bool:
        value = self.value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def require(self, expected: bool, *keys: str) -> None:
        """Refuse a file in which one of these flags is anything else; left out, each is what is expected."""
        for key in keys:
            if self.flag(key, expected) is not expected:
                raise self.wrong(key, str(expected).lower())

    def count(self, key: str, default: int | None = None, *, least: int = 1, most: int = limits.COUNT) -> int:
        value = self.value(key, default)
        if not _is_count(value, least, most):
            raise self.wrong(key, f"a whole number from {least} to {most}")
        return int(value)

    def counts(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Some whole numbers of at least 1."""
        value = self.value(key, list(default))
        if not isinstance(value, list) or not value or not all(map(_is_count, value)):
            raise self.wrong(key, "a list of whole numbers")
        return tuple(value)

    def number(self, key: str, default: float | None = None, *, least: float = 0.0, most: float = limits.REAL) -> float:
        """A positive number from `least` to `most`."""
        value = self.value(key, default)
        if not _is_number(value) or value <= 0 or not least <= value <= most:
            raise self.wrong(key, f"a positive number {f'from {least:g} ' if least else ''}up to {most:g}")
        return float(value)

    def text(self, key: str, default: str) -> str:
        value = self.value(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def choice(self, key: str, default: Any, choices: dict[Any, str]) -> str:
        value = self.value(key, default)
        if isinstance(value, bool) or not isinstance(value, str | int) or value not in choices:
            raise self.wrong(key, " or ".join(repr(choice) for choice in choices))
        return choices[value]

    def side(self, key: str, default: int) -> int:
        """A number of pixels, or a list of two equal ones."""
        value = self.value(key, default)
        sides = value if isinstance(value, list) else [value] * 2
        if len(sides) != 2 or sides[0] != sides[1] or not _is_count(sides[0]):
            raise self.wrong(key, "one number of pixels or two equal ones")
        return int(sides[0])

    def square(self, key: str) -> int:
        """The side of {"height", "width"}, or a number of pixels."""
        value = self.value(key)
        side, other = (value.get("height"), value.get("width")) if isinstance(value, dict) else (value, value)
        if not isinstance(side, int) or side != other or not _is_count(side):
            raise self.wrong(key, '{"height": and "width": the same number of pixels}')
        return side

    def edge(self, key: str) -> int:
        """The number of pixels in {"longest_edge"}."""
        value = self.value(key)
        edge = value.get("longest_edge") if isinstance(value, dict) else None
        if not isinstance(edge, int) or not _is_count(edge):
            raise self.wrong(key, '{"longest_edge": a number of pixels}')
        return edge

    def triple(self, key: str) -> tuple[float, float, float]:
        """Three numbers, or one for all three."""
        value = self.value(key)
        values = value if isinstance(value, list) else [value] * 3
        if len(values) != 3 or not all(map(_is_number, values)):
            raise self.wrong(key, "three numbers")
        return float(values[0]), float(values[1]), float(values[2])


def _is_count(value: Any, least: int = 1, most: int = limits.COUNT) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= limits.REAL


def read_json(
    path: Path,
    advice: str,
    *,
    missing: str | None = None,
    largest: int = limits.CONFIG_FILE,
    finite: bool = True,
    halves: bool = False,
) -> Any:
    """The content of a JSON file. Raises EdgeVLMError if it is missing, no regular file, damaged or too large.

    advice: what to do, at the end of the message. missing: the whole message for a file that does not exist.
    largest, finite, halves: as in `parse_json`.
    """
    try:
        return parse_json(read_regular(path, largest, advice), largest, finite=finite, halves=halves)
    except FileNotFoundError:
        raise EdgeVLMError(missing or f"'{path}' is missing: {advice}.") from None
    except OSError as error:
        raise EdgeVLMError(f"'{path}' cannot be read ({error.strerror}): check its permissions.") from None
    except ValueError as error:
        raise EdgeVLMError(f"'{path}' is not valid JSON ({str(error)[:200]}): {advice}.") from None


def read_object(
    path: Path,
    advice: str,
    *,
    missing: str | None = None,
    largest: int = limits.CONFIG_FILE,
    finite: bool = True,
) -> dict[str, Any]:
    """As `read_json`, for a file that holds an object."""
    data = read_json(path, advice, missing=missing, largest=largest, finite=finite)
    if not isinstance(data, dict):
        raise EdgeVLMError(f"'{path}' holds a JSON {type(data).__name__}, expected an object: {advice}.")
    return data


def read_json_file(path: Path, *, required: bool = True, largest: int = limits.CONFIG_FILE) -> JsonFile:
    """One of a checkpoint's files; empty where it is absent and not `required`."""
    if not required and not path.exists():
        return JsonFile(path, {}, given=False)
    missing = f"'{path}' is missing: use a checkpoint with its processor files."
    data = read_object(path, "download the file again", missing=missing, largest=largest, finite=False)
    return JsonFile(path, data)
