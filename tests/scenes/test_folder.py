"""The Scenes folder: written whole or not at all, read with every fault named by file and line."""

from __future__ import annotations

import errno
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edgevlm.cli import edgevlm, main
from edgevlm.errors import EdgeVLMError
from edgevlm.scenes import ask, make_scene, read_questions, write_scenes

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "val"
    write_scenes(folder, "val", 5, 12)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "scenes"))


def test_the_folder_is_as_the_format_says(written: Path) -> None:
    head = json.loads((written / "dataset.json").read_text())
    assert head == {"format": "edgevlm-scenes", "version": 1, "split": "val", "seed": 5, "count": 12, "loc_bins": 64}
    assert sorted(p.name for p in (written / "images").iterdir()) == [f"{n:06d}.png" for n in range(12)]
    rows = [json.loads(line) for line in (written / "questions.jsonl").read_text().splitlines()]
    for row in rows:
        assert {"id", "image", "skill", "question", "answer"} <= row.keys()
        assert row["image"] == f"images/{row['id'].split('-')[0]}.png" and (written / row["image"]).is_file()
        extra = {"existence": {"mode"}, "grounding": {"box"}, "caption": {"facts"}}.get(row["skill"], set())
        assert row.keys() - {"id", "image", "skill", "question", "answer"} == extra
    assert not list(written.parent.glob(".*"))


def test_reading_gives_what_was_asked(written: Path) -> None:
    found = read_questions(written)
    assert (found.split, found.seed, found.count, found.loc_bins, found.problems) == ("val", 5, 12, 64, ())
    expected = [question for index in range(12) for question in ask(make_scene("val", 5, index))]
    for read, asked in zip(found.questions, expected, strict=True):
        assert read.to_dict() == asked.to_dict()
    with Image.open(found.picture(found.questions[-1])) as picture:
        assert picture.tobytes() == make_scene("val", 5, 11).picture.tobytes()


def test_the_true_answers_score_full_marks(written: Path) -> None:
    """By the evaluation's own scorers, which were written apart from the questions."""
    from edgevlm.evaluation.scenes import read_scenes, score_scenes

    items, problems = read_scenes(written)
    assert not problems and {item.skill for item in items} >= {"existence", "colour", "grounding", "caption"}
    for item in items:
        assert score_scenes(item, item.answers[0]).score == 1, (item.question, item.answers)


def test_writing_again_gives_the_same_bytes(written: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "again", "val", 5, 12)
    for path in written.rglob("*"):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(written)).read_bytes() == path.read_bytes()


def test_an_existing_folder_is_replaced_only_with_force_and_only_if_it_is_scenes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgeVLMError, match="already exists"):
        write_scenes(folder, "test", 0, 1)
    write_scenes(folder, "test", 0, 1, force=True)
    assert read_questions(folder).split == "test" and len(list((folder / "images").iterdir())) == 1
    other = tmp_path / "photos"
    other.mkdir()
    (other / "mine.jpg").write_bytes(b"precious")
    with pytest.raises(EdgeVLMError, match="not a Scenes folder"):
        write_scenes(other, "test", 0, 1, force=True)
    assert (other / "mine.jpg").read_bytes() == b"precious"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_or_full_disk_leaves_nothing_and_loses_nothing(
    error: BaseException, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    save, saved = Image.Image.save, Counter[str]()

    def fail_at_third(self: Image.Image, *args: Any, **options: Any) -> None:
        saved["n"] += 1
        if saved["n"] == 3:
            raise error
        save(self, *args, **options)

    monkeypatch.setattr(Image.Image, "save", fail_at_third)
    with pytest.raises(SystemExit) as stop:
        main(["scenes", str(folder), "--count", "5", "--force"])
    assert stop.value.code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert ("Interrupted" in (err := capsys.readouterr().err)) or "disk is full" in err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def edit_line(folder: Path, number: int, edit: Edit) -> None:
    """Change the row of a line; what `edit` returns, if anything, takes the row's place."""
    path = folder / "questions.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[number - 1])
    changed = edit(row)
    lines[number - 1] = changed if isinstance(changed, str) else json.dumps(row if changed is None else changed)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def line_of(folder: Path, skill: str) -> int:
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    return 1 + next(n for n, row in enumerate(rows) if row["skill"] == skill)


def setting(**changes: Any) -> Edit:
    return lambda row: row.update(changes)


FAULTS: list[tuple[str, Edit, str]] = [
    ("naming", setting(image="images/999999.png"), "the image 'images/999999.png' is missing"),
    ("naming", setting(image="../secret.png"), "not a path below the folder"),
    ("naming", setting(image="/etc/passwd"), "not a path below the folder"),
    ("naming", setting(image="C:\\x.png"), "not a path below the folder"),
    ("naming", setting(answer="  "), "'answer' is empty"),
    ("naming", setting(answer=None), "the column 'answer' is missing"),
    ("naming", setting(question=["a"]), "'question' must be text, not a list"),
    ("naming", setting(skill="telepathy"), "skill 'telepathy' is none of"),
    ("naming", lambda row: row.pop("question") and None, "the column 'question' is missing"),
    ("naming", setting(id="000000-0"), "the id '000000-0' is line 1's already"),
    ("naming", lambda row: json.dumps(row)[:40], "the line is not JSON"),
    ("naming", lambda row: ["a", "list"], "a JSON object is expected, not a list"),
    ("naming", lambda row: '{"id": ' + "[" * 100000, "too many objects and lists"),
    ("existence", setting(answer="maybe"), "yes or no, not 'maybe'"),
    ("existence", setting(mode="rare"), "'mode' must be one of"),
    ("count", setting(answer="three"), "0 to 10 in digits, not 'three'"),
    ("count", setting(answer="11"), "0 to 10 in digits, not '11'"),
    ("grounding", setting(box=[0.1, 0.2, 0.3]), "'box' must be a list of four numbers"),
    ("grounding", setting(box=[0.5, 0.2, 0.3, 0.4]), "left < right"),
    ("grounding", setting(box=[0.5, 0.2, float("nan"), 0.4]), "NaN is no number of JSON"),
    ("caption", setting(facts=[]), "'facts' must be a list"),
    ("caption", setting(facts=[{"count": 0, "colour": None, "name": "dog"}]), "above 0"),
]


@pytest.mark.parametrize(("skill", "edit", "sentence"), FAULTS, ids=[fault[2][:28] for fault in FAULTS])
def test_a_bad_line_is_named_and_skipped_only_when_asked(folder: Path, skill: str, edit: Edit, sentence: str) -> None:
    total = len(read_questions(folder).questions)
    number = line_of(folder, skill)
    edit_line(folder, number, edit)
    with pytest.raises(EdgeVLMError) as caught:
        read_questions(folder)
    assert f"questions.jsonl', line {number}: " in str(caught.value) and sentence in str(caught.value)
    assert "--skip-bad" in str(caught.value)
    found = read_questions(folder, skip_bad=True)
    assert len(found.questions) == total - 1 and len(found.problems) == 1
    assert found.problems[0].startswith(f"questions.jsonl, line {number}: ") and sentence in found.problems[0]


def test_a_file_cut_off_in_its_last_line_says_so(folder: Path) -> None:
    path = folder / "questions.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    last = path.read_bytes().count(b"\n") + 1
    with pytest.raises(EdgeVLMError, match=rf"line {last}: the line is cut off \(the file ends in it\)"):
        read_questions(folder)
    assert len(read_questions(folder, skip_bad=True).problems) == 1


def test_missing_pictures_are_counted_line_by_line(folder: Path) -> None:
    (folder / "images" / "000002.png").unlink()
    (folder / "images" / "000003.png").write_bytes(b"")
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    bad = sum(row["image"] in ("images/000002.png", "images/000003.png") for row in rows)
    found = read_questions(folder, skip_bad=True)
    assert len(found.problems) == bad > 10 and len(found.questions) == len(rows) - bad
    assert any("is empty" in problem for problem in found.problems)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not valid JSON"),
        ('{"format": "coco"}', "not a Scenes folder's"),
        ('{"format": "edgevlm-scenes", "version": 2}', "update edgevlm"),
        ('{"format": "edgevlm-scenes", "version": 1, "split": "dev", "seed": 0, "count": 1}', "a split"),
        ("[]", "not a Scenes folder's"),
    ],
)
def test_a_bad_head_is_refused(folder: Path, text: str, sentence: str) -> None:
    (folder / "dataset.json").write_text(text)
    with pytest.raises(EdgeVLMError, match=sentence):
        read_questions(folder)


def test_what_is_no_scenes_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgeVLMError, match="not a Scenes folder"):
        read_questions(tmp_path / "nowhere")
    (folder / "questions.jsonl").write_text("\n\n")
    with pytest.raises(EdgeVLMError, match="no question that can be used"):
        read_questions(folder)
    (folder / "questions.jsonl").unlink()
    with pytest.raises(EdgeVLMError, match="cannot be read"):
        read_questions(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=80), place=st.integers(0, 10**6))
def test_any_junk_is_a_sentence_and_never_a_traceback(written: Path, tmp_path: Path, junk: bytes, place: int) -> None:
    target = tmp_path / "junk"
    if not target.exists():
        shutil.copytree(written, target)
    data = (written / "questions.jsonl").read_bytes()
    at = place % len(data)
    (target / "questions.jsonl").write_bytes(data[:at] + junk + data[at + len(junk) :])
    try:
        read_questions(target)
    except EdgeVLMError as error:
        assert "line" in str(error)
    read_questions(target, skip_bad=True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--split", "dev"], "There is no split 'dev'"),
        (["--count", "0"], "--count 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--count", "many"], "many"),
    ],
)
def test_the_verb_refuses_in_one_sentence(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["scenes", str(tmp_path / "out"), *words])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and sentence in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_verb_writes_and_says_how_much(tmp_path: Path) -> None:
    done = CliRunner().invoke(edgevlm, ["scenes", f"{tmp_path}/out", "--split", "train", "--seed", "9", "--count", "3"])
    assert done.exit_code == 0
    found = read_questions(tmp_path / "out")
    assert (found.split, found.seed, found.count) == ("train", 9, 3)
    assert f"3 pictures and {len(found.questions)} questions" in done.stderr and not done.stdout


def test_more_rounds_ask_more_of_the_same_pictures(tmp_path: Path) -> None:
    for rounds in ("1", "3"):
        arguments = ["scenes", f"{tmp_path}/{rounds}", "--split", "train", "--count", "4", "--rounds", rounds]
        assert CliRunner().invoke(edgevlm, arguments).exit_code == 0
    once, thrice = (read_questions(tmp_path / rounds) for rounds in ("1", "3"))
    assert len(thrice.questions) > 1.5 * len(once.questions)
    assert len({(q.image, q.question) for q in thrice.questions}) == len(thrice.questions)
    images = [sorted(path.read_bytes() for path in (tmp_path / rounds / "images").iterdir()) for rounds in ("1", "3")]
    assert images[0] == images[1]
    refused = CliRunner().invoke(edgevlm, ["scenes", f"{tmp_path}/0", "--rounds", "0"])
    assert refused.exit_code != 0 and not (tmp_path / "0").exists()
