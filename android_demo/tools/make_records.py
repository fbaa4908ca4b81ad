"""Write records.json, what a manifest.json may hold, for the Kotlin SDK, out of the dataclasses that write manifests.

    python android_demo/tools/make_records.py [--check]

By the name of a record: by field, its `type`, whether it must be there (`needed`), and its `bound` (least and most of a
number, or the words that are known). A type is a word (int, float, str, bool, any), a record's name in {"record"}, the
records of several kinds in {"kinds"}, or of other types {"list"}, {"items"} (as many as there are), {"dict"}, {"null"}
(or null) and {"one"} (of these words).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from edgevlm.bundle.manifest import Manifest  # noqa: E402
from edgevlm.models.bounds import BOUNDS  # noqa: E402

OUT = ROOT / "android_demo/edgevlm-core/src/main/resources/ai/edgevlm/bundle/records.json"
WORDS = {int: "int", float: "float", str: "str", bool: "bool", Any: "any"}


def type_of(hint: Any, found: dict[str, Any]) -> Any:
    if hint in WORDS:
        return WORDS[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        add(hint, found)
        return {"record": hint.__name__}
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return {"list": type_of(args[0], found)}
        return {"items": [type_of(arg, found) for arg in args]}
    if origin is dict:
        return {"dict": type_of(args[1], found)}
    assert origin in (typing.Union, types.UnionType), hint
    if type(None) in args:
        rest = [arg for arg in args if arg is not type(None)]
        return {"null": type_of(rest[0] if len(rest) == 1 else typing.Union[tuple(rest)], found)}  # noqa: UP007
    if not all(map(dataclasses.is_dataclass, args)):
        return {"one": [type_of(arg, found) for arg in args]}
    for arg in args:
        add(arg, found)
    return {"kinds": {kind_of(arg): arg.__name__ for arg in args}}


def kind_of(record: Any) -> str:
    return next(str(field.default) for field in dataclasses.fields(record) if field.name == "kind")


def add(record: Any, found: dict[str, Any]) -> None:
    if record.__name__ in found:
        return
    fields = found[record.__name__] = {}
    hints = typing.get_type_hints(record)
    for field in dataclasses.fields(record):
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        fields[field.name] = {"type": type_of(hints[field.name], found)} | ({"needed": True} if needed else {})
        bound = BOUNDS.get(record, {}).get(field.name)
        if bound is not None:
            fields[field.name]["bound"] = list(bound)


def records() -> str:
    found: dict[str, Any] = {}
    add(Manifest, found)
    lines = (f"{json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file differs")
    if parser.parse_args().check:
        same = OUT.is_file() and OUT.read_text("utf-8") == records()
        print("records.json is up to date" if same else "records.json differs: run android_demo/tools/make_records.py")
        return 0 if same else 1
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(records(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
