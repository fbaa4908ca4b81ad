"""What `strict` says of a JSON Schema: an object has the properties that are named, and no others.

OpenAI takes a strict schema only with `additionalProperties: false` in each of its objects, and llama.cpp's server
reads every schema so. Without it a small model goes on with properties of its own until its tokens are used up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMED = frozenset({"properties", "$defs", "definitions"})  # schemas by name
_INSIDE = frozenset({"items", "prefixItems", "anyOf", "oneOf", "additionalProperties"})
_OPEN = frozenset({"additionalProperties", "unevaluatedProperties", "patternProperties"})


def closed(schema: Any) -> Any:
    """The schema with `additionalProperties: false` where an object says nothing of it. One that is put together of
    several (`allOf`) stays as it is: each of them alone would refuse what the others name."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, Mapping) or "allOf" in schema:
        return schema
    made = dict(schema)
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            made[key] = {name: closed(part) for name, part in value.items()}
        elif key in _INSIDE:
            made[key] = closed(value)
    if "properties" in made and not _OPEN & made.keys():
        made["additionalProperties"] = False
    return made
