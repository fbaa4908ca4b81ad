"""Frozen dataclasses to JSON values and back, strictly."""

from __future__ import annotations

import dataclasses
import types
import typing
from functools import cache
from typing import Any, TypeVar

from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits

T = TypeVar("T")


def to_dict(spec: Any) -> dict[str, Any]:
    """A spec as plain JSON values."""
    return dataclasses.asdict(spec)


def from_dict(cls: type[T], data: Any, where: str) -> T:
    """Build `cls` from JSON values, strictly: unknown, missing and mistyped fields are refused, naming `where`.

    So are numbers and texts beyond `limits`; what a field's number means is bounded by the class, or by who reads it.
    """
    if not isinstance(data, dict):
        raise EdgeVLMError(f"{where} should hold a JSON object, found {type(data).__name__}: export the bundle again.")
    hints = _hints(cls)  # type: ignore[arg-type]  # python/mypy#11469
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(fields)):
        raise EdgeVLMError(
            f"{where} has the unknown field '{unknown[0][:100]}': it was written by another version of edgevlm; "
            "export the bundle again."
        )
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise EdgeVLMError(f"{where} lacks the field '{name}': export the bundle again.")
    return cls(**values)


_hints = cache(typing.get_type_hints)  # compiles each field's annotation


def _tagged(choices: list[Any], value: Any, where: str) -> Any:
    """The dataclass whose field `kind` has the value's kind as its default."""
    kind = value.get("kind") if isinstance(value, dict) else None
    for choice in choices:
        if any(f.name == "kind" and f.default == kind for f in dataclasses.fields(choice)):
            return choice
    raise EdgeVLMError(
        f"{where} is of the unknown kind {str(kind)[:80]!r}: export the bundle again, or update edgevlm."
    )


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        choices = [a for a in args if a is not type(None)]
        if all(map(dataclasses.is_dataclass, choices)):
            return _convert(choices[0] if len(choices) == 1 else _tagged(choices, value, where), value, where)
        fitting = next((a for a in choices if isinstance(a, type) and type(value) is a), choices[0])
        return _convert(fitting, value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if origin is tuple and isinstance(value, list):
        inner = args[0] if len(args) == 2 and args[1] is Ellipsis else None
        if inner is None and len(args) != len(value):
            raise EdgeVLMError(f"{where} should have {len(args)} items, found {len(value)}: export the bundle again.")
        return tuple(_convert(inner or args[i], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        if isinstance(value, str) and len(value) > limits.TEXT:
            raise EdgeVLMError(
                f"{where} has {len(value)} characters, expected at most {limits.TEXT}: export the bundle again."
            )
        if isinstance(value, int | float) and not abs(value) <= limits.REAL:
            raise EdgeVLMError(f"{where} is {value:.3g}, expected at most {limits.REAL:g}: export the bundle again.")
        return value
    name = getattr(hint, "__name__", str(hint))
    raise EdgeVLMError(f"{where} should be {name}, found {repr(value)[:100]}: export the bundle again.")
