"""Options of the API, checked against their own annotations: "2" is no number of tokens."""

from __future__ import annotations

import numbers
import os
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError

_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", Path: "a path"}


def check_types(options: Any) -> None:
    """Raise EdgeVLMError where a field of a dataclass is not what it is declared as. Call it first in __post_init__.

    What means one thing only is put right: a text where a path is wanted or the other way round, a list where a tuple
    is, numpy's numbers.
    """
    for name, hint in typing.get_type_hints(type(options)).items():
        value = getattr(options, name)
        try:
            object.__setattr__(options, name, _convert(hint, value))
        except TypeError:
            raise EdgeVLMError(f"{name} is {shown(value)}: give {_wanted(hint)}.") from None


def shown(value: object) -> str:
    """A value in a sentence about it, in at most 100 characters."""
    plain = value is None or isinstance(value, str | int | float)
    return repr(value)[:100] if plain else f"of type {type(value).__name__}"


def _convert(hint: Any, value: Any) -> Any:
    """The value as `hint` has it; TypeError where it is something else."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for one in args:
            with suppress(TypeError):
                return _convert(one, value)
        raise TypeError
    if hint is Any:
        return value
    if origin is tuple and isinstance(value, tuple | list):
        return tuple(_convert(args[0], item) for item in value)
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {_convert(args[0], key): _convert(args[1], item) for key, item in value.items()}
    if hint is Path and isinstance(value, str | os.PathLike) and value != "":
        return Path(value)
    if hint is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if hint in (int, float) and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if hint is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is not int or hint is type(value)):
        return value
    raise TypeError


def _wanted(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return f"{_wanted(args[0])}, or None"
    if origin is tuple:
        return f"a tuple, each {_wanted(args[0])}"
    if origin in (dict, Mapping):
        return f"a dict, each value {_wanted(args[1])}"
    return _WORDS.get(hint) or f"{'an' if hint.__name__[0] in 'AEIOU' else 'a'} {hint.__name__}"
