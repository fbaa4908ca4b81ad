"""Write docs/schemas/*.schema.json: JSON Schemas of a bundle's files, from the dataclasses that read and write them.

python docs/make_schemas.py          writes them
python docs/make_schemas.py --check  exits with 1 if one would change

A schema says which fields there are and of which types; which numbers are possible, the readers check (edgevlm.inputs,
edgevlm.bundle).
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

from edgevlm.bundle.manifest import SCHEMA, Manifest
from edgevlm.inputs.spec import IMAGE_SPEC_VERSION, PROMPT_SPEC_VERSION, ImageSpec, PromptSpec

FOLDER = Path(__file__).parent / "schemas"
COMMAND = "python docs/make_schemas.py"
# file name: the dataclass, and the field that says which schema a file follows, with its value
FILES: dict[str, tuple[type, str, int]] = {
    "manifest": (Manifest, "schema", SCHEMA),
    "preprocess": (ImageSpec, "version", IMAGE_SPEC_VERSION),
    "prompt": (PromptSpec, "version", PROMPT_SPEC_VERSION),
}
PLAIN: dict[Any, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    type(None): {"type": "null"},
    Any: {},
}


def schema_of(name: str) -> dict[str, Any]:
    """The JSON Schema of a bundle's file `name`.json."""
    cls, field, version = FILES[name]
    definitions: dict[str, Any] = {}
    top = _object(cls, definitions)
    top["properties"][field] = {"const": version}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{name}.json of an EdgeVLM bundle",
        **top,
        "$defs": dict(sorted(definitions.items())),
    }


def _object(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints, fields = typing.get_type_hints(cls), dataclasses.fields(cls)
    properties = {f.name: _schema(hints[f.name], definitions) for f in fields}
    needed = [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    first = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
    about = {} if first.startswith(f"{cls.__name__}(") else {"description": first}
    return {**about, "type": "object", "properties": properties, "required": needed, "additionalProperties": False}


def _schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}
            definitions[hint.__name__] = _object(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if origin in (typing.Union, types.UnionType):
        choices = [_schema(arg, definitions) for arg in args]
        if sum(map(dataclasses.is_dataclass, args)) > 1:
            for arg in args:
                _tag(arg, definitions)
        return {"anyOf": choices}
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return {"type": "array", "items": _schema(args[0], definitions)}
    if origin is tuple:
        items = [_schema(arg, definitions) for arg in args]
        return {"type": "array", "prefixItems": items, "minItems": len(args), "maxItems": len(args)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(args[1], definitions)}
    return PLAIN[hint]


def _tag(cls: type, definitions: dict[str, Any]) -> None:
    """The members of a union are told apart by `kind`, which each has a value of its own for."""
    if dataclasses.is_dataclass(cls):
        kind = next(field.default for field in dataclasses.fields(cls) if field.name == "kind")
        entry = definitions[cls.__name__]
        entry["properties"]["kind"] = {"const": kind}
        entry["required"] = [*(name for name in entry["required"] if name != "kind"), "kind"]


def page(name: str) -> str:
    return json.dumps(schema_of(name), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    for name in FILES:
        path = FOLDER / f"{name}.schema.json"
        if "--check" not in sys.argv[1:]:
            path.parent.mkdir(exist_ok=True)
            path.write_text(page(name), encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != page(name):
            sys.exit(f"{path.relative_to(FOLDER.parents[1])} does not match the program: run {COMMAND}")


if __name__ == "__main__":
    main()
