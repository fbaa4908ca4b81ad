"""`edgevlm label` as a user meets it: a table of a folder, errors as rows, refusals, a second start that goes on."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import edgevlm
from edgevlm.cli import main
from edgevlm.errors import EdgeVLMError
from edgevlm.generate import pool
from edgevlm.io.claims import claimed
from edgevlm.label import Labels, label

ROOT = Path(__file__).parents[2]
QUESTION = "What is on it?"
SHORT = ("--tiles", 1, "--max-tokens", 4, "--threads", 1)
Done = tuple[int, str]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run one command line in this process; its code and what it says on standard error."""

    def run(*args: object) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        assert out == ""
        return int(exit_info.value.code or 0), err

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve pictures below a folder, of which the last has the content of the first."""
    folder = tmp_path / "my photos"
    for number in range(11):
        place = folder / ("ж" if number % 2 else "below/deep") / f"{number:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(place)
    shutil.copy(folder / "below/deep/00.png", folder / "ж/copy.png")
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()  # type: ignore[no-any-return]
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def leftovers(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if out.name in path.name and path != out)


def answers(bundle: Path, folder: Path, rows: list[dict[str, Any]], **options: Any) -> list[str]:
    """What `Model.answer` says to each picture, without reuse."""
    asked = edgevlm.AskOptions(max_tokens=4, max_tiles=1, **options)
    with edgevlm.load(bundle, threads=1, reuse=False) as model:
        return [model.answer(QUESTION, [folder / row["picture"]], asked).text for row in rows]


@pytest.mark.parametrize("name", ["labels.jsonl", "labels.parquet"])
@pytest.mark.parametrize("workers", [1, 2])
def test_every_picture_has_the_answer_that_it_has_alone(
    name: str, workers: int, tiny_bundle: Path, photos: Path, tmp_path: Path, cli: Callable[..., Done]
) -> None:
    out = tmp_path / name
    code, err = cli("label", tiny_bundle, photos, "-q", QUESTION, "-o", out, *SHORT, "--workers", workers)
    assert (code, err) == (0, f"'{out}' has 12 rows.\n") and leftovers(out) == []
    rows = read(out)
    files = sorted(path for path in photos.rglob("*") if path.is_file())
    assert [row["picture"] for row in rows] == [path.relative_to(photos).as_posix() for path in files]
    assert [row["sha256"] for row in rows] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert [row["answer"] for row in rows] == answers(tiny_bundle, photos, rows)
    assert all(row["error"] is None and row["tokens"] == 4 and row["seconds"] > 0 for row in rows)
    assert list(rows[0]) == ["picture", "sha256", "answer", "error", "tokens", "seconds"]
    again = cli("label", tiny_bundle, photos, "-q", QUESTION, "-o", out, *SHORT)
    assert again == (2, f"Error: '{out}' already exists: choose another name, or replace it with --force.\n")


def test_forms_of_the_answer(tiny_bundle: Path, photos: Path, tmp_path: Path, cli: Callable[..., Done]) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    (tmp_path / "form.json").write_text(json.dumps(schema))
    words = ("label", tiny_bundle, photos, "-q", QUESTION, "--tiles", 1, "--threads", 1)
    for name in ("form.jsonl", "form.parquet"):
        form = ("--schema", tmp_path / "form.json", "--max-tokens", 120)
        assert cli(*words, *form, "-o", tmp_path / name) == (0, f"'{tmp_path / name}' has 12 rows.\n")
    rows, frame = read(tmp_path / "form.jsonl"), pandas.read_parquet(tmp_path / "form.parquet")
    for row in rows:
        jsonschema.validate(row["answer"], schema)
    assert frame["colour"].tolist() == [row["answer"]["colour"] for row in rows]
    assert frame["count"].dtype == np.int64 and frame["count"].tolist() == [row["answer"]["count"] for row in rows]
    assert [json.loads(text) for text in frame["answer"]] == [row["answer"] for row in rows]

    choices = ("--choice", "a cat", "--choice", "a dog", "--scores")
    assert cli(*words, *choices, "-o", tmp_path / "choice.parquet")[0] == 0
    for row in read(tmp_path / "choice.parquet"):
        scores = dict(row["scores"])
        assert row["answer"] in scores and set(scores) == {"a cat", "a dog"}
        assert sum(np.exp(list(scores.values()))) == pytest.approx(1.0)
    assert cli(*words, "--regex", "[0-9]{3}", "-o", tmp_path / "regex.jsonl")[0] == 0
    assert all(len(row["answer"]) == 3 and row["answer"].isdigit() for row in read(tmp_path / "regex.jsonl"))
    code, err = cli(*words, "--regex", "[a-z]{200}", "--max-tokens", 3, "-o", tmp_path / "cut.jsonl")
    assert code == 0 and "12 of them with an error" in err
    row = read(tmp_path / "cut.jsonl")[0]
    assert row["answer"] is None and row["error"] == "The answer was not complete after 3 tokens: raise --max-tokens."


def bomb(path: Path) -> None:
    """A PNG whose header says 40000 x 40000."""
    chunks = (
        b"IHDR" + (40000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0",
        b"IDAT" + zlib.compress(bytes(100)),
        b"IEND",
    )
    content = b"".join((len(c) - 4).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def test_errors_are_rows_and_can_be_asked_about_again(
    tiny_bundle: Path, photos: Path, tmp_path: Path, cli: Callable[..., Done]
) -> None:
    whole = (photos / "ж/01.png").read_bytes()
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "torn.png").write_bytes(whole[: len(whole) // 2])
    (photos / "text.jpg").write_text("no picture")
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    bomb(photos / "bomb.png")
    (photos / "a folder.jpg").mkdir()
    listed = ["ж/01.png", "a folder.jpg", "no such.png", "torn.png", "bomb.png", "http://x.test/a.png", "nul\0.png"]
    (tmp_path / "list.txt").write_bytes("\r\n".join(f"{photos}/{name}" for name in listed).encode())
    for place, good, wrong in ((photos, 12, 5), (tmp_path / "list.txt", 1, 6)):
        for name in ("t.jsonl", "t.parquet"):
            out = tmp_path / name
            words = ("label", tiny_bundle, place, "-q", QUESTION, "-o", out, *SHORT)
            code, err = cli(*words)
            assert code == 0 and f"has {good + wrong} rows, {wrong} of them with an error" in err
            rows = {Path(row["picture"]).name: row for row in read(out)}
            failed = {name: row["error"] for name, row in rows.items() if row["error"] is not None}
            assert len(rows) == good + wrong and len(failed) == wrong
            assert all(len(error) < 1000 and error.endswith(".") for error in failed.values())
            assert all((row["answer"] is None) == (name in failed) for name, row in rows.items())
            assert "pixels" in failed["bomb.png"] and rows["bomb.png"]["sha256"]
            out.unlink()
    cli(*words)
    (photos / "torn.png").write_bytes(whole)
    before = read(out)
    code, err = cli(*words, "--retry-errors")
    assert code == 0 and "has 7 rows, 5 of them with an error" in err and leftovers(out) == []
    after = {row["picture"]: row for row in read(out)}
    assert after[f"{photos}/torn.png"]["answer"] == before[0]["answer"] != None  # noqa: E711
    for row in before:
        assert row["error"] is not None or after[row["picture"]] == row
    other = cli(*words[:4], "Which?", *words[5:], "--retry-errors")
    assert other[0] == 2 and "has the answers of another run (the question was" in other[1]
    assert {row["picture"]: row for row in read(out)} == after


def test_errors_of_json_lines_are_asked_about_again(
    tiny_bundle: Path, photos: Path, tmp_path: Path, cli: Callable[..., Done]
) -> None:
    """A finished table in JSON lines does not say what was asked: the same command does."""
    whole = (photos / "ж" / "01.png").read_bytes()
    (photos / "torn.png").write_bytes(whole[:30])
    out = tmp_path / "t.jsonl"
    words = ("label", tiny_bundle, photos, "-q", QUESTION, "-o", out, *SHORT)
    assert "1 of them with an error" in cli(*words)[1]
    (photos / "torn.png").write_bytes(whole)
    assert cli(*words, "--retry-errors") == (0, f"'{out}' has 13 rows.\n")
    rows = {row["picture"]: row["answer"] for row in read(out)}
    assert rows["torn.png"] == rows["ж/01.png"] != None  # noqa: E711


def test_pictures_within_json_lines(tiny_bundle: Path, photos: Path, tmp_path: Path, cli: Callable[..., Done]) -> None:
    """As `edgevlm run --input` takes them."""
    content = (photos / "ж" / "01.png").read_bytes()
    inside = "data:image/png;base64," + base64.b64encode(content).decode()
    lines = [{"image": inside}, {"image": "http://x.test/a.png"}, {"image": str(photos / "ж" / "01.png")}]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert cli("label", tiny_bundle, tmp_path / "l.jsonl", "-q", QUESTION, "-o", tmp_path / "o.jsonl", *SHORT)[0] == 0
    first, second, third = read(tmp_path / "o.jsonl")
    assert first["picture"] == "line 1" and first["answer"] == third["answer"] and first["sha256"] == third["sha256"]
    assert second["picture"] == "http://x.test/a.png" and "is on the network" in second["error"]


def test_names_in_lists_and_parquet(tiny_bundle: Path, photos: Path, tmp_path: Path, cli: Callable[..., Done]) -> None:
    files = sorted(path for path in photos.rglob("*.png"))
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps({"image": str(path)}) for path in [*files, files[0]]))
    pq.write_table(pa.table({"image": [path.read_bytes() for path in files]}), tmp_path / "bytes.parquet")
    rows = {}
    for name in ("list.jsonl", "bytes.parquet"):
        out = tmp_path / f"{name}.out.jsonl"
        code, err = cli("label", tiny_bundle, tmp_path / name, "-q", QUESTION, "-o", out, *SHORT)
        again = "1 of the pictures were listed before, and have one row each.\n" if name == "list.jsonl" else ""
        assert (code, err) == (0, f"'{out}' has 12 rows.\n{again}")
        rows[name] = read(out)
    assert [row["picture"] for row in rows["list.jsonl"]] == list(map(str, files))
    assert [row["picture"] for row in rows["bytes.parquet"]] == list(map(str, range(12)))
    for one, other in zip(*rows.values(), strict=True):
        assert (one["sha256"], one["answer"]) == (other["sha256"], other["answer"])


def test_what_cannot_begin_is_refused_and_leaves_nothing(
    tiny_bundle: Path, photos: Path, tmp_path: Path, cli: Callable[..., Done]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text('{"type": "nonsense"}')
    (tmp_path / "list.jsonl").write_text('{"image": "a.png"}\n')
    out = tmp_path / "t.jsonl"
    start = ("label", tiny_bundle, photos, "-q", QUESTION, "-o", out)
    for words, sentence in (
        (("label", tiny_bundle, tmp_path / "empty", *start[3:]), "holds no picture: check the path"),
        (("label", tiny_bundle, tmp_path / "none", *start[3:]), "There is no"),
        (("label", photos, photos, *start[3:]), "is not a bundle"),
        (("label", tiny_bundle, photos, "-q", " ", "-o", out), "The question is empty"),
        (("label", tiny_bundle, photos, "-q", "word " * 3000, "-o", out), "2048"),
        (("label", tiny_bundle, photos, "-q", QUESTION, "-o", tmp_path / "t.csv"), "neither Parquet nor JSON lines"),
        (("label", tiny_bundle, photos, "-q", QUESTION, "-o", tmp_path / "no" / "t.jsonl"), "There is no folder"),
        (("label", tiny_bundle, tmp_path / "list.jsonl", "-q", QUESTION, "-o", tmp_path / "list.jsonl"), "reads"),
        ((*start, "--schema", tmp_path / "bad.json"), "schema"),
        ((*start, "--regex", "("), "The regex cannot be used"),
        ((*start, "--scores"), "scores are of choices"),
        ((*start, "--workers", 0), "workers is 0: give a whole number from 1 to 256"),
        ((*start, "--threads", 0), "threads"),
        ((*start, "--device", "tpu"), "Device 'tpu' does not exist"),
        ((*start, "--column", "a"), "A column is of a Parquet file"),
        ((*start, "--ray", "nowhere:1", "--workers", 999), "from 1 to 256"),
    ):
        before = sorted(tmp_path.iterdir())
        code, err = cli(*words)
        assert code == 2 and sentence in err and err.count("\n") == 1, (words, err)
        assert sorted(tmp_path.iterdir()) == before, words
    assert json.loads((tmp_path / "list.jsonl").read_text()) == {"image": "a.png"}
    with pytest.raises(EdgeVLMError, match="unexpected keyword argument 'wrokers'"):
        label(tiny_bundle, photos, QUESTION, out, wrokers=2)
    with pytest.raises(EdgeVLMError, match=r"give edgevlm\.AskOptions"):
        label(tiny_bundle, photos, QUESTION, out, "short")  # type: ignore[arg-type]


def stopped(bundle: Path, photos: Path, out: Path, after: int, **settings: Any) -> None:
    """A run that ends as by Ctrl-C at its row number `after`."""

    def progress(done: int, total: int, new: int, errors: int) -> None:
        if new == after:
            raise KeyboardInterrupt

    options = edgevlm.AskOptions(max_tokens=4, max_tiles=1)
    with pytest.raises(KeyboardInterrupt):
        label(bundle, photos, QUESTION, out, options, progress, threads=1, **settings)


def test_a_stopped_run_goes_on_with_its_own_settings_alone(
    tiny_bundle: Path, photos: Path, tmp_path: Path, cli: Callable[..., Done]
) -> None:
    out = tmp_path / "t.jsonl"
    words = ("label", tiny_bundle, photos, "-o", out, "--tiles", 1, "--threads", 1)
    stopped(tiny_bundle, photos, out, 5)
    assert leftovers(out) == ["t.jsonl.partial.jsonl"] and not out.exists()
    part = (tmp_path / "t.jsonl.partial.jsonl").read_bytes()
    assert part.count(b"\n") == 6
    for other, sentence in (
        (("-q", "Which?", "--max-tokens", 4), 'the question was "What is on it?", now "Which?"'),
        (("-q", QUESTION, "--max-tokens", 5), "max_tokens was 4, now 5"),
        (("-q", QUESTION, "--max-tokens", 4, "--runtime", "eager"), 'the runtime was null, now "eager"'),
        (("-q", QUESTION, "--max-tokens", 4, "--choice", "a", "--force"), 'choices was null, now ["a"]'),
    ):
        code, err = cli(*words, *other)
        assert code == 2 and f"has the answers of another run ({sentence}): give the same command as then" in err
        assert (tmp_path / "t.jsonl.partial.jsonl").read_bytes() == part
    (photos / "ж/new.png").write_bytes((photos / "ж/01.png").read_bytes())
    (photos / "below/deep/00.png").unlink()  # its answer is there
    found = label(
        tiny_bundle, photos, QUESTION, out, edgevlm.AskOptions(max_tokens=4, max_tiles=1), threads=1, workers=2
    )
    assert found == Labels(13, 0, 8) and leftovers(out) == []
    rows = read(out)
    assert len({row["picture"] for row in rows}) == 13
    (photos / "below/deep/00.png").write_bytes((photos / "ж/copy.png").read_bytes())
    assert [row["answer"] for row in rows] == answers(tiny_bundle, photos, rows)


def test_what_appears_at_the_place_of_the_table_is_kept(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    stopped(tiny_bundle, photos, out, 3)
    out.write_text("mine")
    options = edgevlm.AskOptions(max_tokens=4, max_tiles=1)
    for retry in (False, True):
        with pytest.raises(EdgeVLMError, match="already exists"):
            label(tiny_bundle, photos, QUESTION, out, options, retry_errors=retry)
    out.unlink()

    def progress(done: int, total: int, new: int, errors: int) -> None:
        if done == total:
            out.write_text("mine")

    with pytest.raises(EdgeVLMError, match="appeared while this ran, and was kept: the new file is"):
        label(tiny_bundle, photos, QUESTION, out, options, progress, threads=1)
    assert out.read_text() == "mine" and len(read(tmp_path / "t.jsonl-2")) == 12


def test_two_processes_do_not_share_a_table(
    tiny_bundle: Path, photos: Path, tmp_path: Path, cli: Callable[..., Done]
) -> None:
    out = tmp_path / "t.jsonl"
    hold = f"from pathlib import Path; from edgevlm.io.claims import claimed; import time\nwith claimed(Path({str(out)!r})):\n print(1, flush=True); time.sleep(60)"  # noqa: E501
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"1\n"
        code, err = cli("label", tiny_bundle, photos, "-q", QUESTION, "-o", out, *SHORT)
        assert code == 2 and err.startswith(f"Error: Another edgevlm (process {holder.pid}) is writing '{out}'")
    finally:
        holder.kill()
        holder.communicate()
    with claimed(out):
        pass


def test_pictures_that_change_while_it_runs(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    """One is removed and one damaged after the run has begun: error rows; one is replaced: the new one's answer."""
    out, other = tmp_path / "t.jsonl", (photos / "ж/03.png").read_bytes()

    def progress(done: int, total: int, new: int, errors: int) -> None:
        if new == 1:
            (photos / "below/deep/08.png").unlink()
            (photos / "below/deep/10.png").write_bytes(other[:200])
            (photos / "ж/copy.png").write_bytes(other)

    options = edgevlm.AskOptions(max_tokens=4, max_tiles=1)
    assert label(tiny_bundle, photos, QUESTION, out, options, progress, threads=1) == Labels(12, 2, 12)
    rows = {row["picture"]: row for row in read(out)}
    assert "does not exist" in rows["below/deep/08.png"]["error"]
    assert "damaged" in rows["below/deep/10.png"]["error"]
    assert rows["ж/copy.png"]["sha256"] == hashlib.sha256(other).hexdigest() == rows["ж/03.png"]["sha256"]
    assert rows["ж/copy.png"]["answer"] == rows["ж/03.png"]["answer"]


def test_the_same_content_is_asked_about_once(
    tiny_bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, put = [], pool.put

    def counting(*given: Any) -> Any:
        asked.append(given)
        return put(*given)

    monkeypatch.setattr(pool, "put", counting)
    label(tiny_bundle, photos, QUESTION, tmp_path / "t.jsonl", edgevlm.AskOptions(max_tokens=4, max_tiles=1), threads=1)
    rows = {row["picture"]: row for row in read(tmp_path / "t.jsonl")}
    assert len(asked) == 11 and rows["ж/copy.png"]["answer"] == rows["below/deep/00.png"]["answer"]


def test_progress_without_a_terminal(
    tiny_bundle: Path, photos: Path, tmp_path: Path, cli: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgevlm.io.console.QUIET_SECONDS", 0.0)
    (photos / "bad.jpg").write_text("no picture")
    code, err = cli("label", tiny_bundle, photos, "-q", QUESTION, "-o", tmp_path / "t.jsonl", *SHORT)
    lines = err.splitlines()
    assert code == 0 and lines[0] == "0 of 13 pictures, 0 errors" and len(lines) == 15
    assert (
        lines[5].startswith("5 of 13 pictures, ") and "per second, " in lines[5] and lines[5].endswith(" left, 1 error")
    )


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB of its own."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk(tiny_bundle: Path, photos: Path, small: Path, cli: Callable[..., Done]) -> None:
    """With room for nothing, for a part of the journal, for the journal but not the table, in one sentence each; then
    with room again the run goes on and has every row."""
    out, ballast, long = small / "t.jsonl", small / "ballast", "word " * 400
    (small / "mine.txt").write_text("mine")
    words = ("label", tiny_bundle, photos, "-q", QUESTION, "-o", out, *SHORT, "--stop", "\u2603" * 200)
    full = 0
    for room in range(0, 28, 4):
        with ballast.open("wb", buffering=0) as stream:
            try:
                while stream.write(bytes(4096)):
                    pass
            except OSError:
                pass
            stream.truncate(max(0, stream.tell() - room * 1024))
        code, err = cli(*words)
        ballast.unlink()
        assert (small / "mine.txt").read_text() == "mine" and long
        if code == 0:
            break
        full += 1
        last = err.splitlines()[-1]
        assert code == 2 and last.startswith("Error: The disk is full at '") and "t.jsonl" in last, err
        assert not out.exists() and set(leftovers(out)) <= {"t.jsonl.partial.jsonl"}
    assert full >= 2
    if code:
        assert cli(*words)[0] == 0
    rows = read(out)
    assert len({row["picture"] for row in rows}) == len(rows) == 12 and all(row["answer"] for row in rows)
