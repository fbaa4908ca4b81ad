"""Moondream's boxes and points: what its published code reads out of states, on every engine, in pixels."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import moondream
from tiny.common import picture

sys.path.insert(0, str(Path(__file__).parent))
from harness import Checkpoint, Variant

from edgevlm.bundle.region import REGION, region_file
from edgevlm.cli import main
from edgevlm.errors import EdgeVLMError, GateError
from edgevlm.export import pipeline
from edgevlm.export.onnx_ import emit
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.generate.loop import Answer, GenerateOptions, Pipeline
from edgevlm.generate.region import find_places
from edgevlm.inputs.grounding import Box, Point
from edgevlm.runtimes import open_runtime
from edgevlm.types import F32

IMAGE, MOST = picture(50, 70), 10
# Asked of a head whose lists end: the published code finds so many.
CASES = [
    ("detect", "dog", 8),
    ("detect", "red car", MOST),
    ("point", "red car", 1),
    ("point", "a cup on the table", MOST),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    variant = Variant("places", partial(moondream.build, ends=16.0), moondream.load_processor, moondream.views)
    return Checkpoint(variant, tmp_path_factory.mktemp("places"))


def message(task: str, text: str) -> list[dict[str, Any]]:
    return [{"role": task, "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def positions(task: str, count: int) -> int:
    return count * (3 if task == "detect" else 2)


def published(model: moondream.Oracle, made: Checkpoint, task: str, text: str) -> list[dict[str, float]]:
    inputs = made.processor(text=text, images=[IMAGE], return_tensors="pt", task=task)
    return model.places(**inputs, size=task == "detect", most=MOST)


def check(answer: Answer, expected: list[dict[str, float]], task: str, text: str) -> None:
    """In pixels, boxes cut at the edges; told as text, too."""
    (wide, high), keys = IMAGE.size, ("x_min", "y_min", "x_max", "y_max") if task == "detect" else ("x", "y")
    wanted = np.array([[each[key] for key in keys] for each in expected]).clip(0, 1) * ([wide, high] * (len(keys) // 2))
    found = [(b.x0, b.y0, b.x1, b.y1) for b in answer.boxes] + [(p.x, p.y) for p in answer.points]
    np.testing.assert_allclose(np.array(found), wanted, rtol=1e-5)
    assert bool(answer.boxes) == (task == "detect")
    assert {place.label for place in (*answer.boxes, *answer.points)} == {text}
    assert answer.finish_reason == ("length" if len(expected) == MOST else "stop")
    lines = [list(json.loads(line).values()) for line in answer.text.split("\n")]
    np.testing.assert_allclose([line[1:] for line in lines], wanted, atol=0.0501)
    assert answer.timings.answer_tokens == 1 + positions(task, len(expected)) and answer.ids == ()


@pytest.mark.parametrize("task, text, count", CASES)
def test_places_are_the_published_codes(made: Checkpoint, task: str, text: str, count: int) -> None:
    bundle, expected = made.bundle("fp32"), published(made.model, made, task, text)
    assert len(expected) == count
    with closing(open_runtime(bundle)) as runtime:
        asker = Pipeline(bundle, runtime)
        prompt = asker.prepare([IMAGE], message(task, text))
        said = made.processor(text=text, images=[IMAGE], return_tensors="np", task=task)
        assert prompt.ids.tolist() == said["input_ids"][0].tolist()
        check(asker.answer([IMAGE], message(task, text), GenerateOptions(positions(task, MOST))), expected, task, text)
        # What was asked before, and lookup with it, changes nothing.
        asker.answer([IMAGE], "What is in the picture?", GenerateOptions(32, lookup=True))
        again = asker.answer([IMAGE], message(task, text), GenerateOptions(positions(task, MOST)))
        check(again, expected, task, text)


@pytest.mark.heavy
@pytest.mark.parametrize("engine", ["eager", "portable", "coreml"])
@pytest.mark.parametrize("task, text, count", CASES)
def test_places_on_other_engines(made: Checkpoint, engine: str, task: str, text: str, count: int) -> None:
    """CoreML's files hold 16 bits: there the published code has such weights, too."""
    model, bundle = made.model, made.bundle("fp32")
    if engine == "coreml":
        bundle = made.bundle("fp16", "coreml", "onnx")
        model = moondream.Oracle({name: value.half() for name, value in model.w.items()})
    expected = published(model, made, task, text)
    name = "onnxruntime" if engine == "portable" else engine
    with closing(open_runtime(bundle, name, portable=engine == "portable", storage="fp32")) as runtime:
        answer = Pipeline(bundle, runtime).answer([IMAGE], message(task, text), GenerateOptions(positions(task, MOST)))
    check(answer, expected, task, text)


def test_what_cannot_be_asked_is_said(made: Checkpoint) -> None:
    bundle = made.bundle("fp32")
    runtime = open_runtime(bundle)
    blind = replace(runtime, decoder=SimpleNamespace(name="llama.cpp"))  # type: ignore[arg-type]
    for asked, images, where, error in (
        ("cup", [], runtime, "The role 'detect' asks where something is: give one picture, and name the thing"),
        (" ", [IMAGE], runtime, "give one picture, and name the thing"),
        ("cup", [IMAGE], blind, "asks for boxes, which .* and llama.cpp does not give them: use another runtime"),
    ):
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": asked}]
        with pytest.raises(EdgeVLMError, match=error):
            Pipeline(bundle, where).prepare(images, [{"role": "detect", "content": content}])
    runtime.close()


def test_the_command_line_draws_them(made: Checkpoint, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    IMAGE.save(tmp_path / "in.png")
    bundle, drawn = made.bundle("fp32").folder, tmp_path / "out.png"
    options = ["--task", "detect", "--draw", str(drawn), "--json", "--max-tokens", "30"]
    with pytest.raises(SystemExit) as done:
        main(["run", str(bundle), str(tmp_path / "in.png"), "dog", *options])
    out, err = capfd.readouterr()
    assert not done.value.code and drawn.is_file() and "Boxes drawn in" in err
    (wide, high), found = IMAGE.size, json.loads(out)["boxes"]
    expected = [box["x_min"] * wide for box in published(made.model, made, "detect", "dog")]
    assert [box["x0"] for box in found] == pytest.approx(expected) and {box["label"] for box in found} == {"dog"}
    assert all(0 <= box["y0"] < box["y1"] <= high for box in found)
    with pytest.raises(SystemExit) as done:  # a task that takes a picture and no words
        main(["run", str(bundle), str(tmp_path / "in.png"), "--task", "caption", "--max-tokens", "2"])
    assert not done.value.code


class Told:
    """A head that says what it is told."""

    end = 0

    def __init__(self, numbers: list[Any]) -> None:
        self._numbers = iter(numbers)

    def coordinate(self, state: F32) -> float:
        return float(next(self._numbers))

    def size(self, state: F32) -> Any:
        return next(self._numbers)

    def coordinate_row(self, value: float) -> F32:
        return np.full((1, 4), value, np.float32)

    def size_row(self, size: Any) -> F32:
        return np.full((1, 4), sum(size), np.float32)


def told(numbers: list[Any], kind: str, logits: list[int], **options: Any) -> Iterator[Box | Point]:
    """logits: the most likely token after the prompt and after each row that is fed."""
    tokens = iter(logits)

    def after(row: F32 | None = None) -> F32:
        return np.eye(2, dtype=np.float32)[next(tokens)]

    return find_places(
        Told(numbers), after(), lambda: np.zeros(4, np.float32), after,  # type: ignore[arg-type]
        kind=kind, label="it", picture=(200, 100), **options,
    )  # fmt: skip


def test_boxes_are_cut_at_the_edges_and_lists_end() -> None:
    # A box's end is asked behind its size alone: tokens behind its coordinates say nothing.
    numbers = [0.0, 0.5, (0.5, 2.0), 0.75, 0.25, (0.25, 0.5)]
    found = list(told(numbers, "boxes", [1, 0, 0, 1, 0, 0, 0], most=30))
    assert found == [Box("it", 0.0, 0.0, 50.0, 100.0), Box("it", 125.0, 0.0, 175.0, 50.0)]
    assert list(told([], "points", [0], most=30)) == []
    assert list(told([0.5, 0.5], "points", [0, 0, 0], most=3, endless=True)) == [Point("it", 100.0, 50.0)]


def test_a_quantized_bundle_holds_the_head_in_16_bits(made: Checkpoint) -> None:
    file = region_file(made.bundle("int4"))
    assert {file.dtype(name) for name in file.tensors} == {"float16"}
    for name in file.tensors:
        np.testing.assert_array_equal(file.read(name), made.model.w[name].half().float().numpy())


def test_the_gate_finds_a_swapped_head(made: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pipeline.write_safetensors

    def swapped(path: Path, shapes: Any, read: Any, dtype: str) -> None:
        real(path, shapes, lambda name: read(name)[::-1] if name == "region.coord_encoder.bias" else read(name), dtype)

    monkeypatch.setattr(pipeline, "write_safetensors", swapped)
    with pytest.raises(GateError, match=r"region head, tensors that differ.*coord_encoder\.bias"):
        export_model(ExportOptions(str(made.folder), tmp_path / "out", quantize="fp32"))


@pytest.mark.heavy
def test_the_gate_finds_other_states(made: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = emit.components

    def faulty(spec: Any) -> list[Any]:
        def build(ops: Any, values: Any, sound: Any) -> Any:
            found = sound(ops, values)
            return found | {"hidden_state": ops.act(found["hidden_state"], "relu")}

        return [
            replace(part, build=partial(build, sound=part.build)) if part.name == "decoder" else part
            for part in real(spec)
        ]

    monkeypatch.setattr(emit, "components", faulty)
    with pytest.raises(GateError, match="prefill hidden state"):
        export_model(ExportOptions(str(made.folder), tmp_path / "out", quantize="fp32"))


def test_a_head_of_another_model_is_refused(made: Checkpoint, tmp_path: Path) -> None:
    bundle = made.bundle("fp32")
    spec = bundle.manifest.spec
    assert spec.region is not None
    other = replace(bundle.manifest, spec=replace(spec, region=replace(spec.region, bins=99)))
    with pytest.raises(EdgeVLMError, match=f"{REGION} and manifest.json disagree: 'region.coord_decoder.fc2.bias' is"):
        region_file(replace(bundle, manifest=other))
