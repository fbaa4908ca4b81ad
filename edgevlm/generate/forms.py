"""What form an answer may be asked for: a JSON Schema, one of several texts, a regular expression; and what ends it.

Checked here as far as it can be without a tokenizer; `constrain` does the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits
from edgevlm.io.json import parse_json

_SCHEMA = (
    'give a dict or the text of a JSON object, such as {"type": "object", "properties": {"name": {"type": "string"}}}'
)


def schema_text(schema: object) -> str:
    """A JSON Schema, a dict or JSON text, as the text of one object. Raises EdgeVLMError for anything else."""
    if not isinstance(schema, str | Mapping):
        raise EdgeVLMError(f"schema is of type {type(schema).__name__}: {_SCHEMA}.")
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema, default=_plain, allow_nan=False)
        value = parse_json(text.encode("utf-8"), limits.SCHEMA)
    except (ValueError, TypeError, RecursionError) as e:  # of a lone surrogate, too
        reason = "it is nested too deep" if isinstance(e, RecursionError) else str(e)[:200]
        raise EdgeVLMError(f"The schema cannot be read ({reason}): {_SCHEMA}.") from None
    if not isinstance(value, dict):
        raise EdgeVLMError(f"The schema is a JSON {type(value).__name__}: {_SCHEMA}.")
    _check_multiples(value)
    return json.dumps(value)


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"it holds a {type(value).__name__}, which is no JSON")


def _check_multiples(value: Any) -> None:
    """A table of remainders is made for each: seconds and hundreds of megabytes at a million."""
    if isinstance(value, list):
        for item in value:
            _check_multiples(item)
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "multipleOf" and type(item) in (int, float):
                digits = Decimal(str(item)).normalize().as_tuple().digits
                if int("".join(map(str, digits))) > limits.MULTIPLE:
                    raise EdgeVLMError(
                        f"The schema asks for multiples of {item!r:.40}, expected up to {limits.MULTIPLE}, leaving out "
                        "zeros and the decimal point: use minimum and maximum instead."
                    )
            _check_multiples(item)


def check_choices(choices: Sequence[str]) -> None:
    """Raise EdgeVLMError where the choices are not distinct texts of which an answer may be one."""
    if not 1 <= len(choices) <= limits.CHOICES:
        raise EdgeVLMError(f"There are {len(choices)} choices: give 1 to {limits.CHOICES} texts.")
    seen = set[str]()
    for choice in choices:
        _check_text("A choice", choice, limits.CHOICE)
        if choice != choice.strip():
            raise EdgeVLMError(f"The choice {choice[:80]!r} begins or ends with white space: leave that out.")
        if choice in seen:
            raise EdgeVLMError(f"The choice {choice[:80]!r} is given twice: name each once.")
        seen.add(choice)


def check_regex(regex: str) -> None:
    """Raise EdgeVLMError where a regular expression is empty or longer than any that is taken."""
    _check_text("The regex", regex, limits.REGEX)


def check_stops(stop: Sequence[str]) -> None:
    """Raise EdgeVLMError where a stop string is empty, or where there are too many."""
    if len(stop) > limits.STOPS:
        raise EdgeVLMError(f"There are {len(stop)} stop strings: give at most {limits.STOPS}.")
    for text in stop:
        _check_text("A stop string", text, limits.STOP)


def _check_text(what: str, text: str, longest: int) -> None:
    if not text:
        raise EdgeVLMError(f"{what} is empty: write one, or leave it out.")
    if len(text) > longest:
        raise EdgeVLMError(f"{what} has {len(text)} characters, at most {longest} are taken: shorten it.")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise EdgeVLMError(f"{what} holds a lone surrogate, which is no character: give it as valid Unicode.")
