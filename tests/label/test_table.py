"""Tables as others read them: pyarrow, pandas and json; typed columns by a schema; little memory for many rows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cases import heavy_but

from edgevlm.errors import EdgeVLMError
from edgevlm.label.table import Shape, check_suffix, head_of, read_table, write_table

ROOT = Path(__file__).parents[2]
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "blue"]}, "count": {"type": "integer"}, "share": {"type": "number"},
            "indoors": {"type": "boolean"}, "answer": {"type": "string"}, "tags": {"type": "array"},
            "either": {"type": ["string", "null"]}, "kind": {"const": "x"}, "mixed": {"enum": ["a", 1]},
            "free": True,
        },
    }
)  # fmt: skip
ANSWER = {
    "colour": "red", "count": 3, "share": 0.25, "indoors": True, "answer": "ж\n\"", "tags": ["a", {"b": 1}],
    "either": None, "kind": "x", "mixed": 1, "free": {"deep": [1]},
}  # fmt: skip


def row(name: str, answer: str | None, **more: Any) -> dict[str, Any]:
    return {"picture": name, "sha256": "ab" * 32, "answer": answer, "error": None, "tokens": 7, "seconds": 0.5, **more}


BROKEN = {**row("ü/b.png", None, error="The image is damaged."), "sha256": None}


def parquet(tmp_path: Path, rows: list[dict[str, Any]], shape: Shape) -> Path:
    path = tmp_path / "t.parquet"
    write_table(rows, path, ".parquet", shape)
    return path


def test_properties_are_typed_columns(tmp_path: Path) -> None:
    path = parquet(tmp_path, [row("a.png", json.dumps(ANSWER)), BROKEN], Shape({"q": "What?"}, SCHEMA))
    table = pq.read_table(path)
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds == {
        "picture": "string", "sha256": "string", "answer": "string", "colour": "string", "count": "int64",
        "share": "double", "indoors": "bool", "answer.answer": "string", "tags": "string", "either": "string",
        "kind": "string", "mixed": "string", "free": "string", "error": "string", "tokens": "int64",
        "seconds": "double",
    }  # fmt: skip
    first, second = table.to_pylist()
    assert json.loads(first["answer"]) == ANSWER and first["answer.answer"] == 'ж\n"'
    assert (first["colour"], first["count"], first["share"], first["indoors"]) == ("red", 3, 0.25, True)
    assert json.loads(first["tags"]) == ["a", {"b": 1}] and json.loads(first["free"]) == {"deep": [1]}
    assert [second[name] for name in kinds if name not in ("picture", "error", "tokens", "seconds")] == [None] * 12
    frame = pandas.read_parquet(path)
    assert frame.loc[frame["error"].notna(), "picture"].tolist() == ["ü/b.png"]
    assert frame["count"].dropna().tolist() == [3] and frame["picture"].tolist() == ["a.png", "ü/b.png"]
    assert head_of(path) == {"q": "What?"}


def test_no_two_properties_are_one_column(tmp_path: Path) -> None:
    names = ["answer", "answer.answer", "error", "answer.error"]
    schema = json.dumps({"type": "object", "properties": {name: {"type": "string"} for name in names}})
    table = pq.read_table(
        parquet(tmp_path, [row("a.png", json.dumps({name: name for name in names}))], Shape({}, schema))
    )
    assert sorted(map(str, table.to_pylist()[0].values())).count("answer") == 1
    assert set(names) <= set(map(str, table.to_pylist()[0].values())) and len(set(table.column_names)) == len(
        table.column_names
    )


@pytest.mark.parametrize(
    "answer",
    ['{"count": 1e400}', '{"count": 99999999999999999999}', '{"count": "3"}', "[1]", "no json", '{"count": true}'],
)
def test_what_does_not_fit_a_column_is_in_the_text(answer: str, tmp_path: Path) -> None:
    (found,) = pq.read_table(parquet(tmp_path, [row("a", answer)], Shape({}, SCHEMA))).to_pylist()
    assert found["answer"] == answer and found["count"] is None


@pytest.mark.parametrize("schema", ['{"type": "array"}', '{"type": ["object", "null"]}', "{}", '{"properties": 3}'])
def test_schemas_that_are_not_flat_have_the_text_alone(schema: str, tmp_path: Path) -> None:
    table = pq.read_table(parquet(tmp_path, [row("a", "[1]")], Shape({}, schema)))
    assert table.column_names == ["picture", "sha256", "answer", "error", "tokens", "seconds"]


def test_scores_boxes_and_names_that_are_no_text(tmp_path: Path) -> None:
    box = {"label": "cup", "x0": 1.0, "y0": 2.0, "x1": 3.5, "y1": 4.0}
    rows = [row("a\udcff.png", "yes", scores={"yes": -0.5, "no": -1.0}, boxes=[box]), BROKEN]
    path = parquet(tmp_path, rows, Shape({}, None, scores=True, places=True))
    first, second = pq.read_table(path).to_pylist()
    assert first["picture"] == "a\\udcff.png" and dict(first["scores"]) == {"yes": -0.5, "no": -1.0}
    assert first["boxes"] == [box] and first["points"] is None and second["boxes"] is None and second["scores"] is None
    assert list(read_table(path, Shape({}))) == [rows[0] | {"picture": "a\\udcff.png"}, BROKEN]


def test_json_lines_have_objects(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [row("a\u2028.png", json.dumps(ANSWER)), BROKEN]
    write_table(rows, path, ".jsonl", Shape({}, SCHEMA))
    lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    assert lines == [{**rows[0], "answer": ANSWER}, BROKEN]
    assert [json.loads(each["answer"] or "0") for each in read_table(path, Shape({}, SCHEMA))] == [ANSWER, 0]
    write_table([row("a", '{"not": "asked for"}')], path, ".jsonl", Shape({}))
    assert json.loads(path.read_text())["answer"] == '{"not": "asked for"}'
    assert list(read_table(path, Shape({}))) == [row("a", '{"not": "asked for"}')]


@pytest.mark.parametrize(("name", "content"), [
    ("t.jsonl", b'{"a": 1}\n'), ("t.jsonl", b"mine"), ("t.jsonl", b'{"picture": "a"}\n'), ("t.parquet", b"mine"),
    ("t.parquet", None),
])  # fmt: skip
def test_another_file_is_no_table(name: str, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is None:
        pq.write_table(pa.table({"a": [1]}), path)
    else:
        path.write_bytes(content)
    with pytest.raises(EdgeVLMError, match=r"is not what `edgevlm label` writes|is no Parquet file"):
        list(read_table(path, Shape({})))


def test_the_suffix_says_which_table(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("labels", "labels.csv", "/dev/stdout", ".parquet"):
        with pytest.raises(EdgeVLMError, match=r"end its name in \.parquet or \.jsonl"):
            check_suffix(Path(name))
    check_suffix(Path("a.PARQUET"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    check_suffix(Path("a.jsonl"))
    with pytest.raises(EdgeVLMError, match=r"need the package pyarrow: run pip install '.\[label\]'"):
        check_suffix(Path("a.parquet"))


# Writes as many rows as it is told to from a generator, and prints by how many bytes the largest resident set grew.
MEMORY = """
import json, sys
from pathlib import Path
from edgevlm.generate.loop import peak_memory
from edgevlm.label.journal import FORMAT, Journal, read_rows
from edgevlm.label.table import Shape, write_table
folder, count, suffix = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
def row(n):
    return {"picture": f"folder/{n:09}.jpg", "sha256": f"{n:064x}", "answer": f"a sentence about {n} " * 40,
            "error": None, "tokens": 9, "seconds": 0.1}
path = folder / "journal"
with path.open("w") as stream:
    stream.write(json.dumps({FORMAT: 1}) + "\\n")
    stream.writelines(json.dumps(row(n)) + "\\n" for n in range(count))
write_table((row(n) for n in range(5000)), folder / "warm", suffix, Shape({}))
before = peak_memory()
write_table(read_rows(path), folder / "table", suffix, Shape({}))
print(peak_memory() - before)
"""


@pytest.mark.parametrize("suffix", heavy_but([".parquet"], [".parquet", ".jsonl"]))
def test_memory_is_flat(suffix: str, tmp_path: Path) -> None:
    """20,000 rows of 1 kB are 20 MB of text, written in little more memory than 5,000 take."""
    command = [sys.executable, "-c", MEMORY, str(tmp_path), "20000", suffix]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    assert grown < 12 << 20
    rows = list(read_table(tmp_path / "table", Shape({}))) if suffix == ".jsonl" else pq.read_table(tmp_path / "table")
    assert len(rows) == 20_000


def test_rows_are_streamed_into_groups(tmp_path: Path) -> None:
    taken = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for number in range(12_000):
            taken += 1
            yield row(str(number), "yes")

    path = tmp_path / "t.parquet"
    write_table(rows(), path, ".parquet", Shape({}))
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [2000] * 6
    assert pq.read_table(path)["picture"].to_pylist() == [str(number) for number in range(12_000)] and taken == 12_000
