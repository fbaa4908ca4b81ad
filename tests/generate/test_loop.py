"""The loop against transformers' generate, and what it does when things go wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import heavy_but
from PIL import Image

import edgevlm
from edgevlm.bundle.manifest import open_bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.generate import pictures as generate
from edgevlm.generate.loop import GenerateOptions, Pipeline
from edgevlm.runtimes import open_runtime
from edgevlm.runtimes.base import Runtime
from edgevlm.verify.inputs import views_of_grid

PICTURES = Path(edgevlm.__file__).parent / "assets" / "pictures"
QUESTION = "What is in the picture?"
CASES = {
    "single tile": (["chelsea.jpg"], 1),
    "tiled": (["scene-tall.png"], None),
    "two pictures": (["coffee.jpg", "rocket.jpg"], 1),
    "two pictures, tiled": (["coffee.jpg", "scene-sign.png"], None),
    "text only": ([], None),
}


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="module", params=["onnxruntime", "onnxruntime portable", "eager"])
def pipeline(request, bundle):
    name, _, portable = request.param.partition(" ")
    runtime = open_runtime(bundle, name, threads=1 if name != "eager" else None, portable=bool(portable))
    yield Pipeline(bundle, runtime)
    runtime.close()


@pytest.fixture(scope="module")
def fast(bundle):
    """One pipeline for what does not depend on the runtime."""
    runtime = open_runtime(bundle, threads=1)
    yield Pipeline(bundle, runtime)
    runtime.close()


@pytest.fixture(scope="module")
def oracle(builder, tiny_checkpoint):
    return make_oracle(builder, tiny_checkpoint)


def make_oracle(builder, checkpoint):
    """Answers of transformers: token ids, and how many the prompt has."""
    model, processor = builder.load_model(checkpoint), builder.load_processor(checkpoint)

    def answer(names, max_tiles, question=QUESTION, **options):
        content = [{"type": "image"}] * len(names) + [{"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        images = [Image.open(PICTURES / name).convert("RGB") for name in names] or None
        split = max_tiles is None
        inputs = processor(text=text, images=images, return_tensors="pt", do_image_splitting=split)
        options = {"max_new_tokens": 64, "do_sample": False, **options}
        with torch.no_grad():
            ids = model.generate(**inputs, **options)[0]
        return ids[inputs["input_ids"].shape[1] :].tolist(), inputs["input_ids"].shape[1]

    return answer


@pytest.mark.parametrize("case", heavy_but(["two pictures, tiled", "text only"], CASES))
def test_greedy_tokens_are_those_of_transformers(pipeline, oracle, case):
    names, max_tiles = CASES[case]
    expected, prompt_tokens = oracle(names, max_tiles)
    options = GenerateOptions(max_tokens=64)
    answer = pipeline.answer([PICTURES / n for n in names], QUESTION, options, max_tiles=max_tiles)
    assert list(answer.ids) == expected
    assert answer.timings.prompt_tokens == prompt_tokens
    assert answer.timings.answer_tokens == len(expected)


def test_repetition_penalty_is_that_of_transformers(fast, oracle):
    """It covers the prompt, image tokens included, and the answer so far."""
    expected, _ = oracle(["coffee.jpg"], 1, repetition_penalty=1.5)
    plain, _ = oracle(["coffee.jpg"], 1)
    assert expected != plain
    options = GenerateOptions(max_tokens=64, repetition_penalty=1.5)
    assert list(fast.answer([PICTURES / "coffee.jpg"], QUESTION, options, max_tiles=1).ids) == expected


def test_a_stop_token_ends_the_answer_as_in_transformers(bundle, fast, oracle):
    free, _ = oracle(["chelsea.jpg"], 1)
    stop = free[5]
    expected, _ = oracle(["chelsea.jpg"], 1, eos_token_id=stop)
    stopping = open_bundle(bundle.folder)
    stopping.__dict__["prompt_spec"] = dataclasses.replace(bundle.prompt_spec, stop_ids=(stop,))
    answer = Pipeline(stopping, fast.runtime).answer([PICTURES / "chelsea.jpg"], QUESTION, max_tiles=1)
    assert list(answer.ids) == expected and answer.ids[-1] == stop and answer.finish_reason == "stop"
    assert answer.text == fast.prompter.decode(answer.ids[:-1]).lstrip()


@pytest.mark.parametrize("count", [1, 2, 17])
def test_max_tokens(fast, count):
    longer = fast.answer([], QUESTION, GenerateOptions(max_tokens=40))
    answer = fast.answer([], QUESTION, GenerateOptions(max_tokens=count))
    assert answer.ids == longer.ids[:count] and answer.finish_reason == "length"
    assert answer.timings.answer_tokens == count


def test_pieces_come_one_by_one_and_join_to_the_text(fast):
    stream = fast.ask([PICTURES / "rocket.jpg"], QUESTION, GenerateOptions(max_tokens=50))
    pieces = list(stream)
    answer = stream.answer
    assert len(pieces) > 10 and all(pieces)
    assert "".join(pieces) == answer.text == fast.prompter.decode(answer.ids).lstrip()
    assert list(stream) == []


def test_sampling_is_reproducible_by_its_seed(pipeline):
    def sample(seed):
        options = GenerateOptions(max_tokens=30, temperature=1.0, top_p=0.95, top_k=40, seed=seed)
        return pipeline.answer([PICTURES / "rocket.jpg"], QUESTION, options, max_tiles=1).ids

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_timings_describe_the_work(fast):
    answer = fast.answer([PICTURES / "scene-tall.png"], QUESTION, GenerateOptions(max_tokens=20))
    timings = answer.timings
    assert min(timings.preprocess, timings.encode, timings.prefill, timings.decode) > 0
    per_tile = fast.bundle.manifest.spec.image_tokens
    assert timings.image_tokens % per_tile == 0 and timings.image_tokens > per_tile
    ids = fast.prepare([PICTURES / "scene-tall.png"], QUESTION).ids
    assert timings.image_tokens == np.count_nonzero(ids == fast.prompter.image_token_id)
    assert timings.prompt_tokens == len(ids)
    assert timings.tokens_per_second == pytest.approx(19 / timings.decode)
    assert timings.peak_memory is None or 20e6 < timings.peak_memory < 20e9


class Untouchable:
    """An engine that must not be used."""

    name = device = "untouchable"

    def __getattr__(self, name):
        raise AssertionError(f"the engine was asked for {name}")


UNTOUCHABLE = Runtime(Untouchable(), Untouchable())


def test_a_prompt_over_the_context_is_refused_with_the_numbers_before_any_work(bundle):
    pipeline = Pipeline(bundle, UNTOUCHABLE)
    one = len(pipeline.prepare([PICTURES / "scene-tall.png"], QUESTION).ids)
    pictures = [PICTURES / "scene-tall.png"] * 12
    with pytest.raises(EdgeVLMError) as caught:
        pipeline.ask(pictures, QUESTION, GenerateOptions(max_tokens=77))
    tokens = len(pipeline.prompter.encode(QUESTION, [views_of_grid(4, 3, 4, 4)] * 12)[0])
    assert tokens > 2048 > one
    assert str(caught.value) == (
        f"The prompt takes {tokens} tokens ({12 * 13 * 16} of them from 12 pictures) and up to 77 for the "
        "answer, but the model's context holds 2048: allow fewer tiles per picture, give fewer pictures or a "
        "shorter question."
    )
    with pytest.raises(EdgeVLMError, match=r"none of them from pictures.* 2048: ask a shorter question\.$"):
        pipeline.ask([], "word " * 3000)


def test_too_many_pictures_are_counted_without_keeping_their_pixels(bundle, monkeypatch):
    made = []
    real = generate.cut_views
    monkeypatch.setattr(generate, "cut_views", lambda *a, **k: made.append(1) or real(*a, **k))
    picture = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(EdgeVLMError, match="from 400 pictures"):
        Pipeline(bundle, UNTOUCHABLE).ask([picture] * 400, QUESTION, max_tiles=1)
    assert len(made) <= 2048 // 16


def test_the_answer_is_cut_to_what_the_context_leaves(fast):
    limit = fast.bundle.manifest.spec.decoder.context_length
    question = "a"
    while limit - len(fast.prepare([], question + " a").ids) > 5:
        question += " a" * max(1, (limit - len(fast.prepare([], question).ids) - 5) // 2)
    room = limit - len(fast.prepare([], question).ids)
    assert 1 <= room < 20
    answer = fast.answer([], question, GenerateOptions(max_tokens=128))
    assert len(answer.ids) == room and answer.finish_reason == "length"


def test_an_interrupt_leaves_the_runtime_usable(pipeline, monkeypatch):
    options = GenerateOptions(max_tokens=12)
    expected = pipeline.answer([PICTURES / "coffee.jpg"], QUESTION, options, max_tiles=1).ids
    decoder, steps = pipeline.runtime.decoder, []
    real = decoder.step

    def interrupted(token):
        steps.append(token)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return real(token)

    monkeypatch.setattr(decoder, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipeline.answer([PICTURES / "coffee.jpg"], QUESTION, options, max_tiles=1)
    monkeypatch.setattr(decoder, "step", real)
    assert pipeline.answer([PICTURES / "coffee.jpg"], QUESTION, options, max_tiles=1).ids == expected


def test_logits_that_are_not_numbers_are_refused(bundle):
    class Broken:
        name, device = "broken", "CPU"

        def encode(self, views):
            return []

        def embed(self, ids):
            return np.zeros((len(ids), 64), np.float32)

        def rewind(self, length):
            pass

        def forward(self, embeds, layout=None, stopped=None):
            return np.full(512, np.nan, np.float32)

    with pytest.raises(EdgeVLMError, match="logits that are not numbers"):
        Pipeline(bundle, Runtime(Broken(), Broken())).answer([], QUESTION)


@pytest.mark.heavy
@pytest.mark.parametrize("max_tiles", [1, None])
def test_the_256m_shape_gives_the_same_64_tokens(builder, checkpoint_256m, tmp_path_factory, max_tiles):
    out = tmp_path_factory.getbasetemp() / "bundle-256m-fp32"
    if not out.exists():
        export_model(ExportOptions(str(checkpoint_256m), out, quantize="fp32", gate=False))
    bundle = open_bundle(out)
    runtime = open_runtime(bundle)
    options = GenerateOptions(max_tokens=64)
    pictures = [PICTURES / "coffee.jpg"]
    answer = Pipeline(bundle, runtime).answer(pictures, QUESTION, options, max_tiles=max_tiles)
    runtime.close()
    expected, prompt_tokens = make_oracle(builder, checkpoint_256m)(["coffee.jpg"], max_tiles)
    assert list(answer.ids) == expected
    assert answer.timings.prompt_tokens == prompt_tokens
