"""Scores of choices against transformers: the log-softmax of its logits over each answer's tokens."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from tiny import qwen3_5

import edgevlm
from edgevlm.bundle.manifest import open_bundle
from edgevlm.cli import main
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.generate.loop import GenerateOptions, Pipeline
from edgevlm.generate.scores import answer_ids
from edgevlm.runtimes import open_runtime

PICTURE = Path(edgevlm.__file__).parent / "assets" / "pictures" / "coffee.jpg"
QUESTION = "What is in the picture?"
CHOICES = ("yes", "no", "a cup of coffee", "a cup of tea", "a cat", "größe 7", "The answer is: 42.")


def expected(builder: ModuleType, checkpoint: Path, pictures: list[Path], choices: tuple[str, ...]) -> Any:
    """log P of each choice, normalized: of the chat template's own rendering of the answer."""
    model, processor = builder.load_model(checkpoint), builder.load_processor(checkpoint)
    content = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": QUESTION}]
    asked = [{"role": "user", "content": content}]
    images = [Image.open(path).convert("RGB") for path in pictures] or None

    def inputs(text: str) -> Any:
        return processor(text=text, images=images, return_tensors="pt", do_image_splitting=False)

    start = inputs(processor.apply_chat_template(asked, add_generation_prompt=True))["input_ids"].shape[1]
    totals = []
    for choice in choices:
        said = {"role": "assistant", "content": [{"type": "text", "text": choice}]}
        given = inputs(processor.apply_chat_template([*asked, said]))
        with torch.no_grad():
            logs = torch.log_softmax(model(**given).logits[0].double(), -1)
        ids = given["input_ids"][0].tolist()
        end = ids.index(processor.tokenizer.convert_tokens_to_ids("<end_of_utterance>"), start)
        totals.append(sum(float(logs[at - 1, ids[at]]) for at in range(start, end)))
    return torch.log_softmax(torch.tensor(totals), -1).numpy()


@pytest.fixture(scope="module", params=["onnxruntime", "eager", "llama.cpp"])
def pipeline(request: pytest.FixtureRequest, gguf_bundle: Any) -> Iterator[Pipeline]:
    if request.param == "llama.cpp" and importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    bundle = gguf_bundle("fp32")
    runtime = open_runtime(bundle, request.param, threads=1)
    yield Pipeline(bundle, runtime)
    runtime.close()


@pytest.mark.parametrize("pictures", [[], [PICTURE]], ids=["text", "picture"])
def test_scores_are_those_of_transformers(
    pipeline: Pipeline, builder: ModuleType, gguf_checkpoint: Path, pictures: list[Path]
) -> None:
    wanted = expected(builder, gguf_checkpoint, pictures, CHOICES)
    assert np.ptp(wanted) > 1
    options = GenerateOptions(choices=CHOICES, scores=True)
    answer = pipeline.answer(pictures, QUESTION, options, max_tiles=1)
    assert answer.scores is not None and tuple(answer.scores) == CHOICES
    # llama.cpp keeps keys and values in 16 bits: half a step is 2^-11, of logits up to 20.
    tolerance = 1e-2 if pipeline.runtime.name == "llama.cpp" else 2e-3
    np.testing.assert_allclose(list(answer.scores.values()), wanted, atol=tolerance)
    assert np.exp(list(answer.scores.values())).sum() == pytest.approx(1)
    # The answer is what it is without them, and so is the next one.
    plain = pipeline.answer(pictures, QUESTION, GenerateOptions(choices=CHOICES), max_tiles=1)
    assert plain.ids == answer.ids and plain.text == answer.text in CHOICES and plain.scores is None
    assert answer.timings.scoring > 0.0


def test_the_order_of_choices_changes_nothing(pipeline: Pipeline) -> None:
    """Shared beginnings are computed once, in another order than that of the choices."""
    one, other = (
        pipeline.answer([], QUESTION, GenerateOptions(choices=choices, scores=True)).scores
        for choices in (CHOICES, CHOICES[::-1])
    )
    assert one is not None and other is not None
    assert one.keys() == other.keys() and [*one] == [*other][::-1]
    np.testing.assert_allclose([one[choice] for choice in CHOICES], [other[choice] for choice in CHOICES], atol=1e-4)


def test_one_token_each_needs_no_step(pipeline: Pipeline) -> None:
    vocabulary = {token.removeprefix("Ġ") for token in pipeline.prompter.tokenizer.get_vocab() if token[1:].isalpha()}
    letters = tuple(word for word in sorted(vocabulary) if len(answer_ids(pipeline.prompter, [word])[0]) == 1)[:4]
    assert len(letters) == 4
    steps, step = [], pipeline.runtime.decoder.step
    pipeline.runtime.decoder.step = lambda token: steps.append(token) or step(token)  # type: ignore[method-assign]
    try:
        pipeline.answer([], QUESTION, GenerateOptions(choices=letters, scores=True, max_tokens=1))
    finally:
        del pipeline.runtime.decoder.step
    assert steps == []


def test_what_cannot_be_scored(pipeline: Pipeline, tmp_path: Path) -> None:
    limit = pipeline.bundle.manifest.spec.decoder.context_length
    question = "word " * 3 * limit
    tokens = len(pipeline.prompter.encode(question[: 2 * limit])[0])
    question = question[: int(2 * limit * (limit - 8) / tokens)]
    assert limit - 30 < len(pipeline.prompter.encode(question)[0]) < limit
    options = GenerateOptions(choices=("yes", "no, " * 200 + "no"), scores=True)
    refused(lambda: pipeline.ask([], question, options), "A choice has ")


def test_a_model_that_cannot_go_back_says_so(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model"
    qwen3_5.build(checkpoint)
    bundle = open_bundle(
        export_model(ExportOptions(str(checkpoint), tmp_path / "out", quantize="fp32", gate=False)).folder
    )
    pipeline = Pipeline(bundle, open_runtime(bundle, "eager"))
    options = GenerateOptions(choices=("yes", "no"), scores=True)
    refused(
        lambda: pipeline.ask([], QUESTION, options), "Scores need a model that can go back to the end of its prompt"
    )
    assert pipeline.answer([], QUESTION, GenerateOptions(choices=("yes", "no"))).text in ("yes", "no")


def test_on_the_command_line(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["run", str(tiny_bundle), QUESTION, *words])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    code, out, err = run("--choice", "yes", "--choice", "no", "--scores")
    assert code == 0 and out in ("yes\n", "no\n")
    shares = dict(line.split()[:2] for line in err.splitlines())
    assert shares.keys() == {"yes", "no"} and sum(map(float, shares.values())) == pytest.approx(100, abs=0.11)
    found = json.loads(run("--choice", "yes", "--choice", "no", "--scores", "--json")[1])
    assert found["answer"] + "\n" == out and found["scores"].keys() == {"yes", "no"}
    assert "scores" not in json.loads(run("--choice", "yes", "--json")[1])

    path = tmp_path / "schema.json"
    path.write_text('{"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2}')
    assert set(json.loads(run("--schema", str(path))[1])) <= {1, 2}
    assert run("--regex", "[ab]{3}", "--stop", "zz")[1].strip("\n").strip("ab") == ""
    path.write_text("[1]")
    assert run("--schema", str(path))[::2] == (
        2, f"Error: '{path}' holds a JSON list, expected an object: name the file of a JSON Schema.\n"
    )  # fmt: skip
    assert "is missing" in run("--schema", str(tmp_path / "none"))[2]
    assert run("--scores")[::2] == (2, "Error: scores are of choices: give choices, or leave scores out.\n")
    assert run("--choice", "a", "--regex", "a")[0] == 2
