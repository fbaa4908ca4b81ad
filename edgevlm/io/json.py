"""JSON files read whole, with errors that name the file and the key."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError


class JsonFile:
    """A JSON object, or an object inside it (`where`); `data` is empty where an optional file is absent."""

    def __init__(self, path: Path, data: dict[str, Any], where: str = "") -> None:
        self.path, self.data, self.where = path, data, where

    def wrong(self, key: str, expected: str) -> EdgeVLMError:
        found = repr(self.data[key]) if key in self.data else "nothing"
        return EdgeVLMError(
            f"'{self.path}' has {self.where}{key} = {found[:80]}, expected {expected}: "
            "use the files that the original model came with."
        )

    def flag(self, key: str, default: bool = True) -> bool:
        value = self.data.get(key, default)  # nearly all of the processors' flags default to True
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def edge(self, key: str) -> int:
        value = self.data.get(key)
        edge = value.get("longest_edge") if isinstance(value, dict) else None
        if isinstance(edge, bool) or not isinstance(edge, int) or edge < 1:
            raise self.wrong(key, '{"longest_edge": a number of pixels}')
        return edge

    def count(self, key: str, default: int | None = None) -> int:
        value = self.data.get(key, default)
        if type(value) is not int or value < 1:
            raise self.wrong(key, "a whole number of at least 1")
        return value

    def square(self, key: str) -> int:
        value = self.data.get(key)
        sides = [value.get("height"), value.get("width")] if isinstance(value, dict) else [value, value]
        if len(sides) != 2 or sides[0] != sides[1] or type(sides[0]) is not int or sides[0] < 1:
            raise self.wrong(key, '{"height": and "width": the same number of pixels}')
        return sides[0]

    def number(self, key: str, default: float | None = None) -> float:
        value = self.data.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(key, "a number")
        return float(value)

    def triple(self, key: str) -> tuple[float, float, float]:
        value = self.data.get(key)
        values = value if isinstance(value, list) else [value] * 3
        numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(values) != 3 or len(numbers) != 3 or not all(map(math.isfinite, numbers)):
            raise self.wrong(key, "three numbers")
        return numbers[0], numbers[1], numbers[2]


def read_json(path: Path, advice: str, *, missing: str | None = None, largest: int = 64 << 20) -> Any:
    """The content of a JSON file. Raises EdgeVLMError if it is missing, damaged, or has over `largest` bytes.

    advice: what to do, at the end of the message. missing: the whole message for a file that does not exist.
    """
    try:
        if path.stat().st_size > largest:
            raise EdgeVLMError(f"'{path}' is larger than {largest} bytes, too large for what it should be: {advice}.")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EdgeVLMError(missing or f"'{path}' is missing: {advice}.") from None
    except OSError as error:
        raise EdgeVLMError(f"'{path}' cannot be read ({error.strerror}): check its permissions.") from None
    except (ValueError, RecursionError) as error:
        raise EdgeVLMError(f"'{path}' is not valid JSON ({str(error)[:200]}): {advice}.") from None


def read_object(path: Path, advice: str, *, missing: str | None = None) -> dict[str, Any]:
    """As `read_json`, for a file that holds an object."""
    data = read_json(path, advice, missing=missing)
    if not isinstance(data, dict):
        raise EdgeVLMError(f"'{path}' holds a JSON {type(data).__name__}, expected an object: {advice}.")
    return data


def read_json_file(path: Path, *, required: bool = True) -> JsonFile:
    """One of a checkpoint's processor files."""
    if not required and not path.exists():
        return JsonFile(path, {})
    missing = f"'{path}' is missing: use a checkpoint with its processor files."
    return JsonFile(path, read_object(path, "download the file again", missing=missing))
