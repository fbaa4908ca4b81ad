"""One object of config.json, read with its types checked."""

from __future__ import annotations

import math
from typing import Any

from edgevlm.errors import EdgeVLMError


class Section:
    """Every getter checks the type; null counts as absent, as in transformers. No default: required."""

    def __init__(
        self, values: dict[str, Any], where: str, *, given: bool = True, names: dict[str, str] | None = None
    ) -> None:
        """names: what the file calls a key, where that is not what getters call it."""
        self._values = values
        self.where = where
        self.given = given
        self._names = names or {}

    def section(self, key: str) -> Section:
        value = self.value(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, "an object", value)
        return Section(value or {}, f"{self.where}: {key}", given=value is not None)

    def without(self, key: str) -> Section:
        """The same object as if it had no `key`."""
        return Section({k: v for k, v in self._values.items() if k != key}, self.where, given=self.given)

    def renamed(self, **names: str) -> Section:
        """The same object under other keys: getters take `key`, the file has `names[key]`."""
        return Section(self._values, self.where, given=self.given, names=names)

    def value(self, key: str) -> Any:
        return self._values.get(self._names.get(key, key))

    def count(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        value = default if self.value(key) is None else self.value(key)
        if type(value) is not int or not least <= value < 1 << 31:
            raise self.wrong(key, f"an integer of at least {least}", value)
        return value

    def side(self, key: str, default: int) -> int:
        value = self.value(key)
        if isinstance(value, list):
            if len(value) != 2 or value[0] != value[1]:
                raise self.wrong(key, "one number or two equal ones", value)
            return Section({key: value[0]}, self.where).count(key, default)
        return self.count(key, default)

    def number(self, key: str, default: float | None = None) -> float:
        value = default if self.value(key) is None else self.value(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.wrong(key, "a positive number", value)
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = default if self.value(key) is None else self.value(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false", value)
        return value

    def choice(self, key: str, default: Any, choices: dict[Any, str]) -> str:
        value = default if self.value(key) is None else self.value(key)
        if not isinstance(value, str | int) or value not in choices:
            raise self.wrong(key, " or ".join(repr(choice) for choice in choices), value)
        return choices[value]

    def wrong(self, key: str, expected: str, found: Any) -> EdgeVLMError:
        name = self._names.get(key, key)
        return EdgeVLMError(
            f"{self.where}: {name} is {str(found)[:100]!r} where edgevlm supports {expected}: use a supported "
            "checkpoint, or download config.json again."
        )
