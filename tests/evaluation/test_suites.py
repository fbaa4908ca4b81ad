"""Readers of the suites' public layouts, folders and Parquet, and what they say about bad files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevlm.errors import EdgeVLMError
from edgevlm.evaluation.files import data_folder
from edgevlm.evaluation.suites import SUITES, fingerprint, read_items


def picture(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(path)
    return path


def write(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = isinstance(data, list) and path.name.startswith(("coco_pope", "questions"))
    path.write_text("\n".join(map(json.dumps, data)) if lines else json.dumps(data))
    return path


def pope(root: Path) -> None:
    for mode in ("random", "popular", "adversarial"):
        write(
            root / f"coco_pope_{mode}.json",
            [
                {
                    "question_id": 1,
                    "image": "COCO_val2014_000000310196.jpg",
                    "text": "Is there a snowboard in the image?",
                    "label": "yes",
                },
                {
                    "question_id": 2,
                    "image": "COCO_val2014_000000310196.jpg",
                    "text": "Is there a car in the image?",
                    "label": "no",
                },
            ],
        )
    picture(root / "val2014/COCO_val2014_000000310196.jpg")


def answers(*texts: str) -> list[dict[str, Any]]:
    return [{"answer": text, "answer_confidence": "yes", "answer_id": i} for i, text in enumerate(texts, 1)]


def vqa(root: Path) -> None:
    question = {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000}
    write(root / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": [question], "data_subtype": "val2014"})
    row = {"question_type": "none of the above", "multiple_choice_answer": "down", "image_id": 262148,
           "answers": answers(*["down"] * 9, "at table"), "answer_type": "other", "question_id": 262148000}  # fmt: skip
    write(root / "v2_mscoco_val2014_annotations.json", {"annotations": [row]})
    picture(root / "val2014/COCO_val2014_000000262148.jpg")


def textvqa(root: Path) -> None:
    row = {"question": "what is the brand of this camera?", "image_id": "003a8ae2ef43b901", "question_id": 34602,
           "answers": ["nous les gosses", *["dakota"] * 9]}  # fmt: skip
    write(root / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": [row]})
    picture(root / "train_images/003a8ae2ef43b901.jpg")


def docvqa(root: Path) -> None:
    row = {"questionId": 49153, "question": "What is the ‘actual’ value per 1000, during the year 1975?",
           "image": "documents/pybv0228_81.png", "docId": 14465, "answers": ["0.28"]}  # fmt: skip
    write(root / "val_v1.0.json", {"dataset_name": "SP-DocVQA", "data": [row]})
    picture(root / "documents/pybv0228_81.png")


def ocrbench(root: Path) -> None:
    write(
        root / "OCRBench.json",
        [
            {
                "dataset_name": "IIIT5K",
                "id": 0,
                "question": "what is written in the image?",
                "answers": ["CENTRE"],
                "type": "Regular Text Recognition",
                "image_path": "IIIT5K/1.png",
            },
            {
                "dataset_name": "HME100k",
                "id": 0,
                "question": "Please write out the expression of the formula.",
                "answers": ["a ^ 2"],
                "type": "Handwritten Mathematical Expression Recognition",
                "image_path": "HME/1.png",
            },
        ],
    )
    picture(root / "OCRBench_Images/IIIT5K/1.png")
    picture(root / "OCRBench_Images/HME/1.png")


def chartqa(root: Path) -> None:
    rows = [{"imgname": "41699051005347.png", "query": "How many food items are shown?", "label": "14"}]
    write(root / "test/test_human.json", rows)
    write(root / "test/test_augmented.json", [{**rows[0], "label": "0.57"}])
    picture(root / "test/png/41699051005347.png")


def scenes(root: Path) -> None:
    head = {"format": "edgevlm-scenes", "version": 1, "split": "test", "seed": 0, "count": 1, "loc_bins": 64}
    write(root / "dataset.json", head)
    image = {"image": "images/000000.png"}
    write(
        root / "questions.jsonl",
        [
            {
                "id": "000000-0",
                **image,
                "skill": "existence",
                "question": "Is there a dog?",
                "answer": "no",
                "mode": "random",
            },
            {"id": "000000-1", **image, "skill": "count", "question": "How many cats?", "answer": "7"},
            {"id": "000000-2", **image, "skill": "count", "question": "How many dogs?", "answer": "5"},
        ],
    )
    picture(root / "images/000000.png")


def jsonl(root: Path) -> None:
    write(
        root / "questions.jsonl",
        [
            {"image": "a.png", "question": "What is it?", "answer": "a cup"},
            {
                "id": "two",
                "images": ["a.png", "b.png"],
                "question": "Which is darker?",
                "answers": ["first", "the first"],
                "skill": "pairs",
                "metric": "contains",
            },
            {"question": "2 + 2?", "answer": 4},
        ],
    )
    picture(root / "a.png")
    picture(root / "b.png", 200)


FOLDERS: dict[str, tuple[Callable[[Path], None], list[tuple[str, str, tuple[str, ...]]]]] = {
    "pope": (pope, [(f"{mode}-{n}", mode, (answer,)) for mode in ("random", "popular", "adversarial")
                    for n, answer in ((1, "yes"), (2, "no"))]),
    "vqa": (vqa, [("262148000", "other", (*["down"] * 9, "at table"))]),
    "textvqa": (textvqa, [("34602", "all", ("nous les gosses", *["dakota"] * 9))]),
    "docvqa": (docvqa, [("49153", "all", ("0.28",))]),
    "ocrbench": (ocrbench, [("1", "Regular Text Recognition", ("CENTRE",)),
                            ("2", "Handwritten Mathematical Expression Recognition", ("a ^ 2",))]),
    "chartqa": (chartqa, [("human-1", "human", ("14",)), ("augmented-1", "augmented", ("0.57",))]),
    "scenes": (scenes, [("000000-0", "existence", ("no",)), ("000000-1", "count_to_10", ("7",)),
                        ("000000-2", "count_to_5", ("5",))]),
    "jsonl": (jsonl, [("1", "all", ("a cup",)), ("two", "pairs", ("first", "the first")), ("3", "all", ("4",))]),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_public_layouts_are_read(tmp_path: Path, name: str) -> None:
    make, expected = FOLDERS[name]
    make(tmp_path)
    items = read_items(SUITES[name], tmp_path)
    assert [(item.id, item.skill, item.answers) for item in items] == expected
    for item in items:
        for found in item.pictures:
            path = found.load()
            assert isinstance(path, Path) and path.is_file()
    assert fingerprint(items) == fingerprint(read_items(SUITES[name], tmp_path))


def image_column(*shades: int) -> Any:
    pa = pytest.importorskip("pyarrow")
    rows = []
    for shade in shades:
        path = Path("x.png")
        import io

        stream = io.BytesIO()
        Image.new("RGB", (8, 6), (shade, 0, 0)).save(stream, "PNG")
        rows.append({"bytes": stream.getvalue(), "path": str(path)})
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def parquet(path: Path, columns: dict[str, Any], rows_per_group: int = 1) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)


HUB: dict[str, tuple[str, dict[str, Any], list[tuple[str, str, tuple[str, ...]]]]] = {
    "pope": ("data/test-00000-of-00001.parquet",
             {"question_id": ["1", "2"], "question": ["Is there a car?", "Is there a dog?"], "answer": ["yes", "no"],
              "image_source": ["COCO_1", "COCO_1"], "category": ["popular", "random"]},
             [("popular-1", "popular", ("yes",)), ("random-2", "random", ("no",))]),
    "vqa": ("data/validation-00000-of-00068.parquet",
            {"question_id": [1, 2], "question": ["a", "b"], "answer_type": ["yes/no", "number"],
             "answers": [answers("yes", "no"), answers("2")]},
            [("1", "yes/no", ("yes", "no")), ("2", "number", ("2",))]),
    "textvqa": ("data/validation-00000-of-00003.parquet",
                {"question_id": [1, 2], "question": ["a", "b"], "answers": [["x", "y"], ["z"]]},
                [("1", "all", ("x", "y")), ("2", "all", ("z",))]),
    "docvqa": ("DocVQA/validation-00000-of-00006.parquet",
               {"questionId": ["1", "2"], "question": ["a", "b"], "answers": [["x"], ["z"]]},
               [("1", "all", ("x",)), ("2", "all", ("z",))]),
    "ocrbench": ("data/test-00000-of-00001.parquet",
                 {"dataset": ["IIIT5K", "HME100k"], "question": ["a", "b"], "question_type": ["T", "F"],
                  "answer": [["x"], ["z"]]},
                 [("1", "T", ("x",)), ("2", "F", ("z",))]),
    "chartqa": ("data/test-00000-of-00001.parquet",
                {"query": ["a", "b"], "label": [["1"], ["2"]], "human_or_machine": [0, 1]},
                [("human-1", "human", ("1",)), ("augmented-2", "augmented", ("2",))]),
}  # fmt: skip


@pytest.mark.parametrize("name", HUB)
def test_hub_layouts_are_read(tmp_path: Path, name: str) -> None:
    file, columns, expected = HUB[name]
    parquet(tmp_path / file, {**columns, "image": image_column(10, 20)})
    items = read_items(SUITES[name], tmp_path)
    assert [(item.id, item.skill, item.answers) for item in items] == expected
    import io

    shades = [np.asarray(Image.open(io.BytesIO(item.pictures[0].load())))[0, 0, 0] for item in items]
    assert shades == [10, 20]
    keys = {item.pictures[0].key for item in items}
    assert keys == {"COCO_1"} if name == "pope" else len(keys) == 2


def test_mmmu_puts_pictures_where_the_question_names_them(tmp_path: Path) -> None:
    empty = image_column(1, 2, 3)
    parquet(
        tmp_path / "Art/validation-00000-of-00001.parquet",
        {
            "id": ["validation_Art_1", "validation_Art_2", "validation_Art_Theory_3"],
            "question": ["Look at <image 2>, then <image 1>. Which?", "What is shown?", "How much? <image 1>"],
            "options": ["['left', 'right']", "['x', '<image 1>']", "[]"],
            "answer": ["B", "A", "['3', '3.0']"],
            "question_type": ["multiple-choice", "multiple-choice", "open"],
            "image_1": empty,
            "image_2": image_column(4, 5, 6),
        },
    )
    suite = SUITES["mmmu"]
    first, second, third = read_items(suite, tmp_path)
    assert (first.skill, third.skill) == ("Art", "Art_Theory") and third.answers == ("3", "3.0")
    conversation, pictures = suite.conversation(first)
    assert [p.key.split(":")[-1] for p in pictures] == ["image_2", "image_1"]
    assert conversation == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look at "},
                {"type": "image"},
                {"type": "text", "text": ", then "},
                {"type": "image"},
                {
                    "type": "text",
                    "text": ". Which?\n(A) left\n(B) right\n\n"
                    "Answer with the option's letter from the given choices directly.",
                },
            ],
        }
    ]
    conversation, pictures = suite.conversation(second)
    assert [piece["type"] for piece in conversation[0]["content"]] == ["text", "image", "text"]
    conversation, _ = suite.conversation(third)
    assert conversation[0]["content"][-1]["text"] == "\nAnswer the question using a single word or phrase."
    conversation, _ = suite.conversation(third, "Q: {question} A:")
    assert [piece.get("text") for piece in conversation[0]["content"]] == ["Q: How much? ", None, " A:"]


def test_prompts_are_the_published_ones(tmp_path: Path) -> None:
    pope(tmp_path)
    item = read_items(SUITES["pope"], tmp_path)[0]
    text, pictures = SUITES["pope"].conversation(item)
    assert text == "Is there a snowboard in the image?\nAnswer the question using a single word or phrase."
    assert len(pictures) == 1
    assert SUITES["pope"].conversation(item, "{question} Yes or no?")[0].endswith("image? Yes or no?")


def spoil(root: Path, name: str, change: Callable[[str], str]) -> None:
    path = next(root.rglob(name))
    path.write_text(change(path.read_text()))


BAD = [
    ("pope", "coco_pope_popular.json", lambda t: t[:-20], r"coco_pope_popular\.json', line 2: not JSON"),
    ("pope", "coco_pope_random.json", lambda t: t.replace('"label"', '"lable"'),
     r"coco_pope_random\.json', line 1: the field 'label' is missing"),
    ("pope", "coco_pope_random.json", lambda t: t.replace("COCO_val2014_000000310196.jpg", "../../secret.jpg"),
     r"line 1: the picture '\.\./\.\./secret\.jpg' is no path below the folder"),
    ("pope", "coco_pope_random.json", lambda t: t.replace("310196.jpg", "310197.jpg"), r"line 1: .* is missing"),
    ("vqa", "*annotations.json", lambda t: t.replace("262148000", "7"), r"annotation 1: .* lacks the question 7"),
    ("vqa", "*annotations.json", lambda t: t[:40], r"annotations\.json' is not valid JSON"),
    ("textvqa", "TextVQA*", lambda t: t.replace("34602", "null"), r"entry 1 of data: the field 'question_id' is miss"),
    ("docvqa", "val_v1.0.json", lambda t: t.replace('["0.28"]', "[]"), r"entry 1 of data: 'answers' should hold texts"),
    ("ocrbench", "OCRBench.json", lambda t: '{"a": 1}', r"OCRBench\.json' should hold a list"),
    ("chartqa", "test_human.json", lambda t: t.replace('"14"', '{"x": 1}'), r"entry 1: 'label' is \{'x': 1\}"),
    ("jsonl", "questions.jsonl", lambda t: t.replace("contains", "magic"), r"line 2: 'metric' is 'magic'"),
    ("jsonl", "questions.jsonl", lambda t: t.replace('"two"', '"1"'), r"two questions have the id '1' \(1 and 2\)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "change", "message"), BAD)
def test_bad_files_are_named(tmp_path: Path, name: str, file: str, change: Callable[[str], str], message: str) -> None:
    FOLDERS[name][0](tmp_path)
    spoil(tmp_path, file, change)
    with pytest.raises(EdgeVLMError, match=message):
        read_items(SUITES[name], tmp_path)


@pytest.mark.parametrize("name", SUITES)
def test_an_empty_folder_is_told_what_it_should_hold(tmp_path: Path, name: str) -> None:
    with pytest.raises(EdgeVLMError, match="should hold" if name != "scenes" else "not a Scenes folder"):
        read_items(SUITES[name], tmp_path)


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/test-00000-of-00001.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(EdgeVLMError, match=r"test-00000-of-00001\.parquet' is no whole Parquet file"):
        read_items(SUITES["ocrbench"], tmp_path)
    file, columns, _ = HUB["ocrbench"]
    parquet(tmp_path / file, {**columns, "image": image_column(10, 20)})
    data = bytearray((tmp_path / file).read_bytes())
    data[4:60] = bytes(56)  # the first column's page
    (tmp_path / file).write_bytes(data)
    with pytest.raises(EdgeVLMError, match=r"test-00000-of-00001\.parquet' is no whole Parquet file"):
        read_items(SUITES["ocrbench"], tmp_path)


def test_the_hub_is_asked_for_the_suites_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: dict[str, Any] = {}

    def snapshot(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert data_folder("MMMU/MMMU", SUITES["mmmu"].files, "main", tmp_path) == tmp_path
    assert asked["repo_type"] == "dataset" and asked["revision"] == "main" and asked["name"] == "MMMU/MMMU"
    assert "Art_Theory/validation-*.parquet" in asked["allow_patterns"] and len(asked["allow_patterns"]) == 30

    def offline(name: str, **options: Any) -> str:
        raise hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(EdgeVLMError, match=r"could not be had from the Hub \(no network\)"):
        data_folder("MMMU/MMMU", (), None, None)
    with pytest.raises(EdgeVLMError, match="There is no folder 'nowhere'"):
        data_folder("nowhere", (), None, None)
