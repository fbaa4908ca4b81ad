"""The runner: right answers score, pictures are encoded once, a killed run goes on, and the verb writes its files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.cli import main
from edgevlm.errors import EdgeVLMError
from edgevlm.evaluation.runner import EvalOptions, answer_text, evaluate
from edgevlm.evaluation.suites import SUITES, read_items
from edgevlm.inputs.prompt import Prompter
from edgevlm.inputs.tokenizer import load_tokenizer
from edgevlm.runtimes.base import Runtime

ROWS: list[dict[str, Any]] = [
    {"skill": "existence", "question": "Is there a dog?", "answer": "yes", "mode": "random"},
    {"skill": "colour", "question": "What colour is the car?", "answer": "red"},
    {"skill": "count", "question": "How many cats are there?", "answer": "3"},
    {"skill": "count", "question": "How many stars are there?", "answer": "8"},
    {"skill": "naming", "question": "What is on the left?", "answer": "boat"},
    {"skill": "grounding", "question": "Where is the boat?", "answer": "<loc_0><loc_0><loc_31><loc_31>",
     "box": [0.0, 0.0, 0.5, 0.5]},
    {"skill": "caption", "question": "Describe the picture.", "answer": "a boat",
     "facts": [{"count": 1, "colour": None, "name": "boat"}]},
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Scenes folder of three pictures; its questions stand in rounds, not picture by picture."""
    out = tmp_path / "scenes"
    (out / "images").mkdir(parents=True)
    head = {"format": "edgevlm-scenes", "version": 1, "split": "test", "seed": 0, "count": 3, "loc_bins": 64}
    (out / "dataset.json").write_text(json.dumps(head))
    lines = []
    for n in range(3):
        shades = np.random.default_rng(n).integers(0, 255, (40, 60, 3), np.uint8)
        Image.fromarray(shades).save(out / f"images/{n:06d}.png")
    for k, row in enumerate(ROWS):
        for n in range(3):
            lines.append(json.dumps({"id": f"{n:06d}-{k}", "image": f"images/{n:06d}.png", **row}))
    (out / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return out


class Scripted:
    """An encoder and a decoder that answer with the texts that they were given, in turn."""

    name, device = "scripted", "paper"

    def __init__(self, bundle: Bundle, texts: list[str]) -> None:
        self._spec = bundle.manifest.spec
        tokenizer = load_tokenizer(bundle.path("tokenizer.json"))
        stop = bundle.prompt_spec.stop_ids[0]
        self._texts = [[*tokenizer.encode(text, add_special_tokens=False).ids, stop] for text in texts]
        self.encoded = 0
        self.asked = 0

    def encode(self, views: Any) -> Any:
        self.encoded += len(views)
        return [np.zeros((self._spec.image_tokens, self._spec.decoder.hidden_size), np.float32) for _ in views]

    def embed(self, ids: Any) -> Any:
        return np.zeros((len(ids), self._spec.decoder.hidden_size), np.float32)

    def _next(self) -> Any:
        logits = np.zeros(self._spec.decoder.vocab_size, np.float32)
        logits[self._now.pop(0)] = 1
        return logits

    def forward(self, embeds: Any, layout: Any = None, stopped: Any = None) -> Any:
        self._now = list(self._texts[self.asked])
        self.asked += 1
        return self._next()

    def step(self, token: int) -> Any:
        return self._next()

    position = 0

    def rewind(self, length: int) -> None: ...

    def close(self) -> None: ...


def scripted(bundle: Bundle, texts: list[str]) -> Runtime:
    engine = Scripted(bundle, texts)
    return Runtime(engine, engine)


RIGHT = ["yes", "Red.", "3", "8", "boat", "0 0 0.5 0.5", "a boat"]


def test_right_answers_score_and_wrong_ones_do_not(tiny_bundle: Path, folder: Path) -> None:
    bundle, suite = open_bundle(tiny_bundle), SUITES["scenes"]
    wrong = ["no", "blue", "4", "7", "car", "nowhere", "a car"]
    runtime = scripted(bundle, [*RIGHT, *wrong, *RIGHT])  # picture by picture, whatever the order of the file
    report = evaluate(bundle, runtime, suite, read_items(suite, folder))
    assert report.score == pytest.approx(14 / 21)
    found = report.to_dict("tiny")
    assert {key: found[key] for key in ("bundle", "suite", "runtime", "questions")} == {
        "bundle": "tiny",
        "suite": "scenes",
        "runtime": "scripted",
        "questions": 21,
    }
    assert list(found["skills"]) == [
        "existence",
        "colour",
        "count_to_5",
        "count_to_10",
        "naming",
        "grounding",
        "caption",
    ]
    for skill in found["skills"].values():
        assert skill == {
            "score": pytest.approx(2 / 3),
            "low": pytest.approx(0.2077, abs=1e-4),
            "high": pytest.approx(0.9385, abs=1e-4),
            "n": 3,
        }
    scores = [score for skill in found["scores"].values() for score in skill.values()]
    assert len(scores) == 21 and sum(scores) == 14, "every question has a digest of its own"
    assert list(found["scores"]["colour"].values()) == [1, 0, 1]
    assert found["metrics"]["existence_random_recall"] == pytest.approx(2 / 3)
    assert found["metrics"]["caption_chair_s"] == pytest.approx(1 / 3)
    assert found["metrics"]["grounding_mean_iou"] == pytest.approx(2 / 3)


def test_a_picture_is_encoded_once_for_all_its_questions(tiny_bundle: Path, folder: Path) -> None:
    bundle, suite = open_bundle(tiny_bundle), SUITES["scenes"]
    engine = Scripted(bundle, RIGHT * 3)
    evaluate(bundle, Runtime(engine, engine), suite, read_items(suite, folder), EvalOptions(max_tiles=1))
    assert (engine.asked, engine.encoded) == (21, 3)


class Killed(BaseException):
    pass


def test_a_killed_run_goes_on_where_it_stopped(tiny_bundle: Path, folder: Path, tmp_path: Path) -> None:
    bundle, suite = open_bundle(tiny_bundle), SUITES["scenes"]
    items, out, whole = read_items(suite, folder), tmp_path / "half.jsonl", tmp_path / "whole.jsonl"
    texts = [f"word {i}" for i in range(21)]
    evaluate(bundle, scripted(bundle, texts), suite, items, out=whole)

    def kill(what: str, done: int, total: int) -> None:
        if done == 9:
            raise Killed

    with pytest.raises(Killed):
        evaluate(bundle, scripted(bundle, texts), suite, items, out=out, progress=kill)
    assert not out.exists()
    with out.with_name("half.jsonl.part").open("a") as stream:
        stream.write('{"id": "000001-3", "ans')  # killed while it wrote
    second = Scripted(bundle, texts[9:])
    report = evaluate(bundle, Runtime(second, second), suite, items, out=out, resume=True)
    assert second.asked == 12
    assert out.read_bytes() == whole.read_bytes() and not out.with_name("half.jsonl.part").exists()
    assert len(report.results) == 21
    third = Scripted(bundle, [])
    again = evaluate(bundle, Runtime(third, third), suite, items, out=out, resume=True)
    assert third.asked == 0 and again.score == report.score and out.read_bytes() == whole.read_bytes()


def test_answers_of_another_run_are_not_mixed_in(tiny_bundle: Path, folder: Path, tmp_path: Path) -> None:
    bundle, suite = open_bundle(tiny_bundle), SUITES["scenes"]
    items, out = read_items(suite, folder), tmp_path / "answers.jsonl"
    evaluate(bundle, scripted(bundle, RIGHT * 3), suite, items, out=out)
    before = out.read_bytes()
    for options, some, what in (
        (EvalOptions(prompt="Q {question}"), items, "prompt"),
        (EvalOptions(), items[:-1], "items, questions"),
        (EvalOptions(max_tiles=1), items, "max_tiles"),
    ):
        with pytest.raises(EdgeVLMError, match=rf"belongs to another run \({what} differ\)"):
            evaluate(bundle, scripted(bundle, []), suite, some, options, out=out, resume=True)
    other = Scripted(bundle, [])
    other.name = "another"
    with pytest.raises(EdgeVLMError, match="runtime differ"):
        evaluate(bundle, Runtime(other, other), suite, items, out=out, resume=True)
    assert out.read_bytes() == before
    out.write_text("hello\n")
    with pytest.raises(EdgeVLMError, match="is not what an eval writes"):
        evaluate(bundle, scripted(bundle, []), suite, items, out=out, resume=True)


def test_a_limit_spreads_over_the_suite(tiny_bundle: Path, folder: Path) -> None:
    bundle, suite = open_bundle(tiny_bundle), SUITES["scenes"]
    items = read_items(suite, folder)
    report = evaluate(bundle, scripted(bundle, ["x"] * 7), suite, items, EvalOptions(limit=7))
    assert sorted(result.item.skill for result in report.results) == sorted(
        ["existence", "colour", "count_to_5", "count_to_10", "naming", "grounding", "caption"]
    )


def test_bad_pictures_stop_a_run_or_are_left_out(tiny_bundle: Path, folder: Path) -> None:
    bundle, suite = open_bundle(tiny_bundle), SUITES["scenes"]
    items = read_items(suite, folder)
    (folder / "images/000001.png").write_bytes(b"no picture")
    with pytest.raises(EdgeVLMError, match=r"question '000001-0' about images/000001\.png: The image .* --skip-bad"):
        evaluate(bundle, scripted(bundle, RIGHT * 3), suite, items)
    report = evaluate(bundle, scripted(bundle, RIGHT * 2), suite, items, EvalOptions(skip_bad=True))
    assert len(report.results) == 14 and len(report.problems) == 7 and report.score == 1.0
    with pytest.raises(EdgeVLMError, match="No question could be asked"):
        evaluate(bundle, scripted(bundle, []), suite, items[1:2], EvalOptions(skip_bad=True))


def test_location_tokens_are_read_though_they_are_special(tiny_bundle: Path) -> None:
    """`Prompter.decode` leaves special tokens out; a scorer of boxes needs them."""
    from tokenizers import AddedToken

    bundle = open_bundle(tiny_bundle)
    tokenizer = load_tokenizer(bundle.path("tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<loc_7>", special=True), AddedToken("<other>", special=True)])
    prompter = Prompter(bundle.prompt_spec, bundle.path("tokenizer.json"))
    ids = [tokenizer.token_to_id("<loc_7>"), *tokenizer.encode(" is é").ids, tokenizer.token_to_id("<other>")]
    assert answer_text(prompter, tokenizer, tuple(ids)) == "<loc_7> is é"


def test_options_say_what_is_wrong() -> None:
    with pytest.raises(EdgeVLMError, match=r"has no .question. in it"):
        EvalOptions(prompt="What?")
    with pytest.raises(EdgeVLMError, match="max-tokens is 0"):
        EvalOptions(max_tokens=0)


def cli(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_the_verb(tiny_bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores, lines = tmp_path / "scores.json", tmp_path / "answers.jsonl"
    words = ["eval", tiny_bundle, "--data", folder, "--json", scores, "--out", lines, "--max-tokens", 4, "--tiles", 1]
    code, out, err = cli(capsys, *words)
    assert code == 0, err
    found = json.loads(scores.read_text())
    assert out == f"{found['score']:.4f}\n"
    assert found["bundle"] == str(tiny_bundle) and found["runtime"] == "onnxruntime" and found["questions"] == 21
    assert set(found["skills"]["caption"]) == {"score", "low", "high", "n"}
    assert "to (95 %)" in err and "21 questions in" in err
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert rows[0]["suite"] == "scenes" and len(rows) == 22
    assert set(rows[1]) >= {"id", "skill", "question", "answer", "expected", "score", "pictures"}

    assert cli(capsys, *words)[0] == 2  # never over something else
    code, again, _ = cli(capsys, *words, "--resume")
    assert code == 0 and again == out
    assert cli(capsys, *words, "--force")[1] == out


def test_scenes_are_drawn_where_no_folder_is_given(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys.modules["edgevlm.commands.eval"], "SCENES", 2)
    scores = tmp_path / "scores.json"
    code, _, err = cli(capsys, "eval", tiny_bundle, "--json", scores, "--limit", 5, "--max-tokens", 2, "--tiles", 1)
    assert code == 0, err
    assert json.loads(scores.read_text())["questions"] == 5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--suite", "poep"], "There is no suite 'poep': did you mean 'pope'?"),
        (["--suite", "pope"], "The suite pope needs --data: a folder with coco_pope_.* or the Hub data set lmms-lab/"),
        (["--suite", "jsonl"], "The suite jsonl needs --data: a folder with lines of"),
        (["--resume"], "--resume goes on with a file of answers"),
        (["--limit", "0"], "limit is 0"),
        (["--data", "nowhere"], "There is no folder 'nowhere'"),
        (["--json", "no/such/place.json"], "There is no folder 'no/such'"),
    ],
)
def test_mistakes_get_a_sentence(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    code, out, err = cli(capsys, "eval", tiny_bundle, *words)
    assert code == 2 and not out
    import re

    assert re.search(sentence, err) and err.count("\n") == 1
