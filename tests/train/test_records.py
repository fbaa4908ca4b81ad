"""Training data: every form reads the same, and what is bad is named by file and line."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from training_data import write_data

from edgevlm.errors import EdgeVLMError
from edgevlm.train.records import Records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", 4)


def texts(records: Records, number: int) -> list[list[str]]:
    return [
        [" ".join(item.get("text", "<image>") for item in message["content"]) for message in dialogue]
        for dialogue in records[number].dialogues
    ]


def test_every_form_reads_the_same(folder: Path) -> None:
    lines, array, scenes = (Records(folder / name) for name in ("data.jsonl", "data.json", "."))
    assert len(lines) == len(array) == len(scenes) == 4
    for number, colour in enumerate(("red", "green", "blue", "white")):
        dialogue = ["<image> What colour is the square?", colour]
        assert texts(lines, number) == texts(array, number) == [dialogue]
        other = "yes" if colour == "red" else "no, there is none"
        assert texts(scenes, number) == [dialogue, ["<image> Is there a red square?", other]]
        for records in (lines, array, scenes):
            assert records[number].images == (folder / f"images/{number:06d}.png",)
    assert [lines[2].place, array[2].place, scenes[2].place] == ["data.jsonl:3", "data.json:30", "questions.jsonl:5"]
    again = pickle.loads(pickle.dumps(lines))
    assert texts(again, 3) == texts(lines, 3)


def test_turns_markers_and_several_pictures(folder: Path) -> None:
    names = ["images/000000.png", "images/000001.png"]
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Compare <image> with <image>\nplease."},
        {"from": "gpt", "value": " Both are squares. "},
        {"from": "human", "value": "And now?"},
    ]
    path = folder / "more.jsonl"
    path.write_text(
        "\ufeff"[:0]
        + json.dumps({"images": names, "conversations": turns})
        + "\r\n\n"
        + json.dumps({"image": names, "question": "Same?", "answer": "No"})
        + "\n"
        + json.dumps({"question": "2 + 2?", "answer": "4"})
    )
    records = Records(path)
    assert [texts(records, n)[0] for n in range(3)] == [
        ["Be brief.", "Compare <image> with <image> please.", "Both are squares."],
        ["<image> <image> Same?", "No"],
        ["2 + 2?", "4"],
    ]
    assert [len(records[n].images) for n in range(3)] == [2, 2, 0]
    assert records[1].place == "more.jsonl:3"


A, B = "images/000000.png", "images/000001.png"
ANSWER = {"role": "assistant", "content": "Both are squares."}
MESSAGES: dict[str, Any] = {
    "items and a list": {"images": [A, B], "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Compare "}, {"type": "image"},
                                     {"type": "text", "text": " with "}, {"type": "image"}]}, ANSWER]},
    "markers in a text": {"images": [A, B], "messages": [
        {"role": "user", "content": "Compare <image> with <image>"}, ANSWER]},
    "items that name files": {"messages": [
        {"role": "user", "content": [{"type": "text", "text": "Compare"}, {"type": "image", "image": A},
                                     {"type": "text", "text": "with"}, {"type": "image", "path": B}]}, ANSWER]},
    "OpenAI's": {"messages": [
        {"role": "user", "content": [
            {"type": "text", "text": "Compare"}, {"type": "image_url", "image_url": {"url": A}},
            {"type": "text", "text": "with"}, {"type": "image_url", "image_url": "file://" + B}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Both are "}, {"type": "text", "text": "squares."}]},
        {"role": "user", "content": "And now?"}]},
    "one of each": {"image": B, "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Compare"}, {"type": "image", "url": A},
                                     {"type": "text", "text": "with"}, {"type": "image"}]}, ANSWER]},
    "prompt and completion": {"images": [A, B], "completion": [ANSWER], "prompt": [
        {"role": "user", "content": "Compare <image> with <image>"}]},
}  # fmt: skip


@pytest.mark.parametrize("form", MESSAGES)
def test_messages_of_openai_and_trl(folder: Path, form: str) -> None:
    records = Records(write(folder / "messages.jsonl", json.dumps(MESSAGES[form])))
    assert texts(records, 0) == [["Compare <image> with <image>", "Both are squares."]]
    assert records[0].images == (folder / A, folder / B)


def test_messages_with_a_system_and_pictures_without_a_place(folder: Path) -> None:
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Colour?"}, ANSWER]
    records = Records(write(folder / "messages.jsonl", json.dumps({"image": A, "messages": said})))
    assert texts(records, 0) == [["Be brief.", "<image> Colour?", "Both are squares."]]


@pytest.mark.parametrize("key", ["messages", "prompt"])
def test_pairs_in_the_form_of_trl(folder: Path, key: str) -> None:
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Colour?"}]}]
    answers = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    records = Records(write(folder / "p.jsonl", json.dumps({"images": [A], key: asked, **answers})), pairs=True)
    assert texts(records, 0) == [["<image> Colour?", "chosen"], ["<image> Colour?", "rejected"]]
    with pytest.raises(EdgeVLMError, match="'chosen' should be a text, or one message of the assistant"):
        Records(write(folder / "p.jsonl", json.dumps({key: asked, **answers, "chosen": asked})), pairs=True)


GOOD = {"image": "images/000000.png", "question": "Colour?", "answer": "red"}
BAD: list[tuple[Any, str]] = [
    ('{"image": "images/000000.png", "question": "Col', "this is not one whole JSON object"),
    ("[1, 2]", "expected a JSON object, found list"),
    (GOOD | {"image": "images/none.png"}, "none.png' does not exist"),
    (GOOD | {"image": "../secret.png"}, "lies outside"),
    (GOOD | {"image": "/etc/passwd"}, "lies outside"),
    (GOOD | {"image": "a\0b"}, "does not exist"),
    (GOOD | {"image": 7}, "'image' should be a path"),
    (GOOD | {"answer": "  "}, "'answer' is empty"),
    (GOOD | {"answer": None}, "'answer' should be a text"),
    (GOOD | {"answer": "\ud800"}, "half of a surrogate pair"),
    ({"image": "images/000000.png", "question": "Colour?", "reply": "red"}, "expected 'messages', 'conversations', or"),
    ({"conversations": []}, "a list of turns, at least one"),
    ({"conversations": [{"from": "human", "value": "Hi"}]}, "no turn is an answer"),
    ({"conversations": [{"from": "robot", "value": "Hi"}]}, "'from' is 'robot'"),
    ({"conversations": [{"from": "human", "text": "Hi"}]}, "'value' is missing"),
    ({"messages": "Hi"}, "'messages' should be a list of messages"),
    ({"messages": [{"role": "tool", "content": "Hi"}]}, "'role' is 'tool', expected user, assistant or system"),
    ({"messages": [{"role": "user", "content": "Hi"}]}, "no turn is an answer"),
    ({"messages": [{"role": "user", "content": None}]}, "'content' should be a text or a list of items, found 'None'"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "'type' is 'video', expected text, image or"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "a text item should hold 'text'"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "image": 7}]}]}, "should name a file, found '7'"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64," +
      "A" * 999}}]}]}, "the picture 'data:image/png;base64,AAAAAAAAAAAAAAAAAA' is no file: save it beside"),
    ({"messages": [{"role": "assistant", "content": [{"type": "image"}]}]}, "the assistant message holds a picture"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "image": "images/000000.png"},
      {"type": "text", "text": "<image> Hi"}]}]}, "both pictures and the text <image>"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "x"}]},
     "1 <image> markers for 0 images"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "image": "../a.png"}]}]}, "lies outside"),
    ({"messages": [{"role": "user", "content": " "}]}, "'content' is empty"),
    ({"conversations": [{"from": "human", "value": "<image> Hi"}, {"from": "gpt", "value": "x"}]}, "1 <image> markers"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "problem"), BAD)
@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_a_bad_record_is_named_by_file_and_line(folder: Path, record: Any, problem: str, form: str) -> None:
    text = record if isinstance(record, str) else json.dumps(record)
    path = folder / f"bad.{form}"
    good = json.dumps(GOOD)
    lines = [good, good, text, good]
    path.write_text("\n".join(lines) if form == "jsonl" else "[" + ",\n".join(lines) + "]")
    truncated = form == "json" and problem.startswith("this is not one whole")  # nothing after it can be found
    with pytest.raises(EdgeVLMError) as caught:
        Records(path)
    message = str(caught.value)
    assert f"1 of {3 if truncated else 4} records" in message and "--skip-bad" in message
    assert f"bad.{form}:3: " in message and problem in message
    records = Records(path, skip_bad=True)
    assert (records.bad, len(records)) == (1, 2 if truncated else 3)
    assert problem in records.shown[0]


def test_bad_questions_leave_a_pictures_others(folder: Path) -> None:
    path = folder / "questions.jsonl"
    lines = path.read_text().splitlines()
    lines[3] = lines[3][:40]
    path.write_text("\n".join(lines))
    records = Records(folder, skip_bad=True)
    assert (len(records), records.bad, len(records[1].dialogues), len(records[2].dialogues)) == (4, 1, 1, 2)
    assert "questions.jsonl:4: " in records.shown[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f / "none.jsonl", "do not exist"),
        (lambda f: f / "images", "is no Scenes folder"),
        (lambda f: f / "images" / "000000.png", "neither .jsonl nor .json"),
        (lambda f: write(f / "empty.jsonl", "\n\n"), "holds no usable record"),
        (lambda f: write(f / "object.json", '{"a": 1}'), "is no JSON array"),
        (lambda f: write(f / "none.json", "[]"), "holds no usable record"),
    ],
)
def test_what_is_no_data_is_said(folder: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(EdgeVLMError, match=message):
        Records(make(folder))


def test_pairs_need_two_different_answers(folder: Path) -> None:
    records = Records(folder / "pairs.jsonl", pairs=True)
    assert texts(records, 0) == [
        ["<image> What colour is the square?", "red"],
        ["<image> What colour is the square?", "a purple cat"],
    ]
    path = write(folder / "same.jsonl", json.dumps({"question": "a", "chosen": "b", "rejected": "b"}))
    with pytest.raises(EdgeVLMError, match=r"same.jsonl:1: 'chosen' and 'rejected' are the same"):
        Records(path, pairs=True)
    with pytest.raises(EdgeVLMError, match=r"data.jsonl:1: expected 'chosen' and 'rejected'"):
        Records(folder / "data.jsonl", pairs=True)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
