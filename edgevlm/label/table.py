"""The finished table: a row for each picture, as JSON lines or Parquet, written and read in little memory.

A row of the journal has the answer as the model wrote it. JSON lines have an answer of JSON as an object; Parquet has
its properties as columns beside the text, typed where the schema says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits
from edgevlm.io.json import parse_json
from edgevlm.io.regular import read_lines
from edgevlm.io.text import json_text
from edgevlm.label.journal import KEYS, Row
from edgevlm.label.pictures import import_pyarrow, open_parquet

SUFFIXES = (".parquet", ".jsonl")
_GROUP = 2000  # rows of a row group of Parquet
_INT64 = range(-(1 << 63), 1 << 63)
_TYPES: dict[str, Callable[[Any], Any]] = {  # of JSON Schema; a value that does not fit its column becomes null there
    "string": lambda value: _plain(value) if isinstance(value, str) else None,
    "integer": lambda value: value if type(value) is int and value in _INT64 else None,
    "number": lambda value: float(value) if isinstance(value, int | float) and type(value) is not bool else None,
    "boolean": lambda value: value if isinstance(value, bool) else None,
    "json": json_text,
}


@dataclass(frozen=True)
class Shape:
    """What beside the columns of every table there is.

    schema: the text of the answers' JSON Schema. head: what was asked of which bundle, kept in Parquet's metadata.
    """

    head: Row
    schema: str | None = None
    scores: bool = False
    places: bool = False  # whether the model's answers name boxes and points

    @property
    def fields(self) -> dict[str, str]:
        """The properties of the answers' objects, and the type of each: a key of `_TYPES`."""
        schema = json.loads(self.schema) if self.schema is not None else {}
        properties = schema.get("properties")
        if schema.get("type", "object") != "object" or not isinstance(properties, dict):
            return {}
        return {name: _type(value) for name, value in properties.items()}


def check_suffix(out: Path) -> None:
    """Refuse a name that says neither Parquet nor JSON lines, and Parquet without its package."""
    if out.suffix.lower() not in SUFFIXES:
        raise EdgeVLMError(f"'{out}' is neither Parquet nor JSON lines: end its name in {' or '.join(SUFFIXES)}.")
    if out.suffix.lower() == ".parquet":
        import_pyarrow()


def write_table(rows: Iterable[Row], path: Path, suffix: str, shape: Shape) -> None:
    """Write a new file."""
    if suffix == ".parquet":
        _write_parquet(rows, path, shape)
        return
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            answer = row["answer"] if shape.schema is None else _value(row["answer"])
            stream.write(json_text({**row, "answer": answer}) + "\n")


def read_table(path: Path, shape: Shape) -> Iterator[Row]:
    """The rows of a table that `write_table` wrote. Raises EdgeVLMError for any other file."""
    wrong = EdgeVLMError(f"'{path}' is not what `edgevlm label` writes: choose another output.")
    if path.suffix.lower() == ".parquet":
        found: Iterable[Any] = _read_parquet(path)
    else:
        found = read_lines(path, limits.LINE)
    for item in found:
        try:
            row = parse_json(item, halves=True) if isinstance(item, bytes) else item
        except ValueError:
            raise wrong from None
        if not isinstance(row, dict) or not row.keys() >= KEYS:
            raise wrong
        if isinstance(item, bytes) and shape.schema is not None and row["answer"] is not None:
            row["answer"] = json_text(row["answer"])
        yield row


def head_of(path: Path) -> Row | None:
    """What was asked for a table of Parquet; None of one that does not say."""
    if path.suffix.lower() != ".parquet":
        return None
    metadata = open_parquet(path).schema_arrow.metadata or {}
    found = json.loads(metadata[b"edgevlm_label"]) if b"edgevlm_label" in metadata else None
    return found if isinstance(found, dict) else None


def _type(schema: Any) -> str:
    """The type of a property that has one."""
    schema = schema if isinstance(schema, dict) else {}
    found = schema.get("type")
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if found is None and isinstance(values, list) and all(isinstance(value, str) for value in values):
        found = "string"
    return found if isinstance(found, str) and found in _TYPES else "json"


def _value(answer: str | None) -> Any:
    """What a text of JSON says; a text that is none, itself."""
    try:
        return None if answer is None else parse_json(answer.encode("utf-8", "surrogatepass"), halves=True)
    except ValueError:
        return answer


def _plain(text: str) -> str:
    """Text that Parquet takes: halves of characters, which names of files may have, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _columns(shape: Shape) -> dict[str, tuple[Any, Callable[[Row, Any], Any]]]:
    """Each column's type and, from a row and its answer's object, its value."""
    pa = import_pyarrow()
    kinds = {
        "string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_(), "json": pa.string()
    }  # fmt: skip
    found: dict[str, tuple[Any, Callable[[Row, Any], Any]]] = {
        "picture": (pa.string(), lambda row, _: _plain(row["picture"])),
        "sha256": (pa.string(), lambda row, _: row["sha256"]),
        "answer": (pa.string(), lambda row, _: None if row["answer"] is None else _plain(row["answer"])),
    }
    own = {*found, "scores", "boxes", "points", "error", "tokens", "seconds"}

    def field(name: str, convert: Callable[[Any], Any]) -> Callable[[Row, Any], Any]:
        return lambda row, answer: convert(answer[name]) if isinstance(answer, dict) and name in answer else None

    for name, kind in shape.fields.items():
        column = name
        while column in own or column in found:
            column = f"answer.{column}"
        found[column] = (kinds[kind], field(name, _TYPES[kind]))
    if shape.scores:
        found["scores"] = (
            pa.map_(pa.string(), pa.float64()),
            lambda row, _: list(row["scores"].items()) if row.get("scores") else None,
        )
    if shape.places:
        label, number = ("label", pa.string()), pa.float64()
        box, point = ([label, *((side, number) for side in sides)] for sides in (("x0", "y0", "x1", "y1"), ("x", "y")))
        found["boxes"] = (pa.list_(pa.struct(box)), lambda row, _: row.get("boxes"))
        found["points"] = (pa.list_(pa.struct(point)), lambda row, _: row.get("points"))
    found["error"] = (pa.string(), lambda row, _: None if row["error"] is None else _plain(row["error"]))
    found["tokens"] = (pa.int64(), lambda row, _: row["tokens"])
    found["seconds"] = (pa.float64(), lambda row, _: row["seconds"])
    return found


def _write_parquet(rows: Iterable[Row], path: Path, shape: Shape) -> None:
    pa, columns = import_pyarrow(), _columns(shape)
    metadata = {"edgevlm_label": json_text(shape.head)}
    schema = pa.schema([(name, kind) for name, (kind, _) in columns.items()], metadata=metadata)
    rows = iter(rows)
    with pa.parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, _GROUP)):
            pairs = [(row, None if shape.schema is None else _value(row["answer"])) for row in group]
            values = [[value(*pair) for pair in pairs] for _, value in columns.values()]
            arrays = [pa.array(column, kind.type) for column, kind in zip(values, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _read_parquet(path: Path) -> Iterator[Row]:
    """With what the journal's rows have."""
    own = ("picture", "sha256", "answer", "scores", "boxes", "points", "error", "tokens", "seconds")
    file = open_parquet(path)
    for batch in file.iter_batches(_GROUP, columns=[name for name in own if name in file.schema_arrow.names]):
        for row in batch.to_pylist():
            if row.get("scores") is not None:
                row["scores"] = dict(row["scores"])
            yield {name: value for name, value in row.items() if value is not None or name in own[:3] + own[6:]}
