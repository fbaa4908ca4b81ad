"""The gate's third level: scores of targets against the model before quantization, by questions of any set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.bundle.weights import ShippedWeights
from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_model
from edgevlm.cli import main
from edgevlm.errors import EdgeVLMError, GateError
from edgevlm.evaluation.item import Item, Result, Scored
from edgevlm.evaluation.runner import Report
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.runtimes import open_runtime
from edgevlm.runtimes.base import Runtime
from edgevlm.runtimes.eager import eager_runtime
from edgevlm.verify import gate
from edgevlm.verify.answers import Questions, check_answers, open_questions
from edgevlm.verify.bounds import BOUNDS
from edgevlm.verify.gate import picture_folder, run_gate
from edgevlm.verify.reference import Reference


def report(scores: dict[str, list[float]]) -> Report:
    results = [
        Result(Item(f"{skill}{i}", (), "", (), skill), "", Scored(score))
        for skill, values in scores.items()
        for i, score in enumerate(values)
    ]
    return Report("scenes", "x", tuple(results), {}, (), 0.0)


def test_the_loss_and_the_skill_that_lost_most() -> None:
    before = report({"colour": [1, 1, 1, 1], "text": [1, 1], "size": [0, 0]})
    after = report({"colour": [1, 1, 0, 1], "text": [0, 0], "size": [0, 1]})
    row = check_answers("onnx", before, after, 0.1)
    assert (row.level, row.where, row.passed) == ("answers", "text", False)
    assert row.measured == pytest.approx(2 / 8)
    assert row.note == "0.500 against 0.750 on 8 questions, most in text (0.00 against 1.00)"
    assert check_answers("onnx", before, after, 0.25).passed
    better = check_answers("onnx", after, before, 0.0)
    assert better.passed and better.measured == pytest.approx(-0.25)
    assert check_answers("onnx", before, before, 0.0).where == ""


@pytest.fixture
def asked(tiny_bundle: Path, tmp_path: Path) -> Iterator[Questions]:
    """Questions whose truths are the fp32 reference's own answers: its score is 1, and a faulty model's is not."""
    bundle = open_bundle(tiny_bundle)
    folder = tmp_path / "questions"
    folder.mkdir()
    shutil.copy(picture_folder() / "scene-things.png", folder / "a.png")
    rows: list[dict[str, Any]] = [
        {"id": str(i), "image": "a.png", "question": f"Question {i}?", "answer": "?", "skill": f"skill {i % 2}"}
        for i in range(4)
    ]
    path = folder / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    reference = open_runtime(bundle, "eager")
    with open_questions(str(folder)) as questions:
        found = questions.ask(bundle, reference)
    for row, result in zip(rows, found.results, strict=True):
        row["answer"] = result.answer
    path.write_text("\n".join(map(json.dumps, rows)))
    with open_questions(str(folder)) as questions:
        yield questions


class Deaf:
    """A decoder whose second and later tokens are off by one: every number of a single step is right."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def step(self, token: int) -> Any:
        return self._decoder.step((token + 1) % 400)


def test_targets_are_held_to_the_original_answer_by_answer(
    tiny_checkpoint: Path, tiny_bundle: Path, asked: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(tiny_bundle)
    original = Reference(*read_model(open_checkpoint(str(tiny_checkpoint))), bundle.image_spec)
    found = run_gate(bundle, original=original, questions=asked)
    (row,) = (row for row in found.rows if row.level == "answers")
    assert found.passed and (row.target, row.check) == ("onnx", "score lost on jsonl")
    assert row.measured == 0 and row.bound == BOUNDS["onnx", "float"].answers
    assert row.note == "1.000 against 1.000 on 4 questions"

    real = gate.open_runtime

    def deaf(bundle: Bundle, *arguments: Any, **options: Any) -> Runtime:
        runtime = real(bundle, *arguments, **options)
        return runtime if options.get("portable") else replace(runtime, decoder=Deaf(runtime.decoder))

    monkeypatch.setattr(gate, "open_runtime", deaf)
    found = run_gate(bundle, questions=asked)
    levels = [row.level for row in found.failures()]
    assert "answers" in levels and "tokens" in levels
    row = next(row for row in found.failures() if row.level == "answers")
    assert row.measured > 0.5 and row.where.startswith("skill")


def test_int4_without_questions_is_not_judged(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(str(tiny_checkpoint), tmp_path / "out", quantize="int4", preset="size")
    result = export_model(options)
    assert result.report is not None and result.report.passed
    row = result.report.rows[-1]
    assert row.check == "NOT JUDGED" and "--answers" in row.note
    strict = ExportOptions(str(tiny_checkpoint), tmp_path / "strict", quantize="int4", preset="size", strict=True)
    with pytest.raises(GateError, match="quantization, NOT JUDGED four bits are judged by answers"):
        export_model(strict)


def test_scenes_can_be_asked(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevlm.verify.answers._DRAWN", 100)
    with open_questions("scenes", 3) as questions:
        assert questions.suite.name == "scenes" and len(questions.items) == 3
        bundle = open_bundle(tiny_bundle)
        assert len(questions.ask(bundle, eager_runtime(bundle, ShippedWeights(bundle))).results) == 3


def test_mistakes_get_a_sentence(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EdgeVLMError, match="There are no questions at 'nowhere'"), open_questions("nowhere"):
        pass
    with pytest.raises(EdgeVLMError, match="ask 0 questions"), open_questions("scenes", 0):
        pass
    for words, sentence in (
        (["--bound", "kl"], "The bound 'kl' has no number"),
        (["--bound", "speed=3"], "There is no bound 'speed'"),
        (["--answers", "nowhere"], "There are no questions at 'nowhere'"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["verify", str(tiny_bundle), *words])
        assert ended.value.code == 2 and sentence in capsys.readouterr().err


def test_verify_writes_json_and_obeys_bounds(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gate.json"
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(tiny_bundle), "--json", str(out), "--bound", "onnx.near-tie=-1"])
    assert ended.value.code == 1
    assert "largest logit gap: 0 against -1" in capsys.readouterr().err
    found = json.loads(out.read_text())
    assert not found["passed"] and {"level", "where", "target", "check"} <= set(found["rows"][0])
    assert {row["check"].split(", ")[-1] for row in found["rows"] if not row["passed"]} == {"largest logit gap"}
