"""One engine and many threads: every answer is what the same question gets alone."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.generate.loop import GenerateOptions, Pipeline
from edgevlm.runtimes import open_runtime
from edgevlm.scenes import ask, make_scene

THREADS = 8
WORDS = ["What is it?", "How many things are there, and of which colour are they?", "Where?", "Is it red or blue?"]


def ask_from_threads(pipeline: Pipeline, questions: list[tuple[list[Any], str]], count: int, tokens: int) -> None:
    """`count` of the questions from eight threads, half of them as streams; each answer is compared with its own."""
    options = GenerateOptions(max_tokens=tokens)
    alone = [pipeline.answer(*question, options).ids for question in questions]
    assert len(set(alone)) > 2, "answers that are all alike would hide a mixture"
    draw = random.Random(0)
    order = [draw.randrange(len(questions)) for _ in range(count)]

    def one(number: int) -> bool:
        stream = pipeline.ask(*questions[order[number]], options)
        if number % 2:
            pieces = list(stream)
            assert "".join(pieces) == stream.answer.text
        return stream.answer.ids == alone[order[number]]

    with ThreadPoolExecutor(THREADS) as pool:
        right = list(pool.map(one, range(count)))
    assert right == [True] * count


def with_limit(call: Callable[[], None], seconds: float = 60) -> None:
    """A deadlock fails the test instead of hanging it."""
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "deadlock"
    for error in failed:
        raise error


@pytest.fixture(scope="module", params=["onnxruntime", "onnxruntime portable", "eager"])
def pipeline(request: pytest.FixtureRequest, tiny_bundle: Path) -> Iterator[Pipeline]:
    name, _, portable = request.param.partition(" ")
    bundle = open_bundle(tiny_bundle)
    runtime = open_runtime(bundle, name, threads=None if name == "eager" else 1, portable=bool(portable))
    yield Pipeline(bundle, runtime)
    runtime.close()


def test_answers_are_right_from_many_threads(pipeline: Pipeline) -> None:
    questions: list[tuple[list[Any], str]] = [([], words) for words in WORDS]
    if pipeline.runtime.name == "onnxruntime":
        questions.append(([make_scene("test", 0, 0).picture], WORDS[0]))
        ask_from_threads(pipeline, questions, 40, tokens=8)
    else:
        ask_from_threads(pipeline, questions, 16, tokens=4)


@pytest.fixture(scope="module")
def default_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("threads") / "default"
    return open_bundle(export_model(ExportOptions("default", out, targets=("onnx", "gguf"), gate=False)).folder)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["onnxruntime", "llama.cpp"])
def test_five_hundred_questions_from_eight_threads(default_bundle: Bundle, name: str) -> None:
    if name == "llama.cpp":
        pytest.importorskip("llama_cpp")
    questions: list[tuple[list[Any], str]] = []
    for number in range(3):
        scene = make_scene("test", 0, number)
        asked = [question.question for question in ask(scene)]
        questions += [([scene.picture], asked[0]), *(([], words) for words in asked)]
    runtime = open_runtime(default_bundle, name, threads=1)
    # Products of int4 round to 8 bits: what is read in other pieces may say something else.
    ask_from_threads(Pipeline(default_bundle, runtime, reuse=False), questions, 500, tokens=12)
    runtime.close()


@pytest.mark.heavy
def test_five_hundred_questions_to_the_reference(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    pipeline = Pipeline(bundle, open_runtime(bundle, "eager"))
    ask_from_threads(pipeline, [([], words) for words in WORDS], 500, tokens=4)


# --- streams -----------------------------------------------------------------------------------------------

LONG = GenerateOptions(max_tokens=30)
SHORT = GenerateOptions(max_tokens=4)


def test_a_stream_that_is_read_slowly_stays_whole_and_stops_nobody(fast: Pipeline) -> None:
    alone, other = fast.answer([], WORDS[0], LONG), fast.answer([], WORDS[1], SHORT)
    stream = fast.ask([], WORDS[0], LONG)
    pieces = iter(stream)
    read = [next(pieces), next(pieces)]
    found: list[tuple[int, ...]] = []
    with_limit(lambda: found.append(fast.answer([], WORDS[1], SHORT).ids))
    assert found == [other.ids]
    assert "".join([*read, *pieces]) == alone.text and stream.answer.ids == alone.ids


def test_streams_may_be_read_in_turns(fast: Pipeline) -> None:
    alone = [fast.answer([], words, LONG).text for words in WORDS[:3]]
    streams = [iter(fast.ask([], words, LONG)) for words in WORDS[:3]]
    texts = ["", "", ""]
    for _ in range(60):
        texts = [text + next(stream, "") for text, stream in zip(texts, streams, strict=True)]
    assert texts == alone


def test_a_stream_is_read_from_any_thread(fast: Pipeline) -> None:
    alone = fast.answer([], WORDS[1], LONG).text
    stream = fast.ask([], WORDS[1], LONG)
    pieces, found = iter(stream), list[str]()
    while len(found) < 3:
        with_limit(lambda: found.append(next(pieces)))
    assert "".join([*found, *pieces]) == alone


def test_a_stream_that_was_dropped_is_not_computed_to_its_end(fast: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    real = fast.runtime.decoder.step
    monkeypatch.setattr(fast.runtime.decoder, "step", lambda token: steps.append(token) or real(token))
    for _ in fast.ask([], WORDS[0], GenerateOptions(max_tokens=500)):
        break
    gc.collect()
    with_limit(lambda: fast.answer([], WORDS[1], SHORT) and None)
    assert len(steps) < 100


def test_a_closed_stream_costs_nothing_more(fast: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = fast.ask([], WORDS[0], GenerateOptions(max_tokens=500))
    pieces = iter(stream)
    next(pieces)
    stream.close()
    stream.close()
    steps = []
    real = fast.runtime.decoder.step
    monkeypatch.setattr(fast.runtime.decoder, "step", lambda token: steps.append(token) or real(token))
    with_limit(lambda: fast.answer([], WORDS[1], SHORT) and None)
    assert len(steps) < 20 and list(pieces) == [] and list(stream) == []
    with pytest.raises(EdgeVLMError, match="was stopped before its end: ask again"):
        _ = stream.answer


def test_an_error_comes_to_the_reader_of_its_own_answer(fast: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    other = fast.answer([], WORDS[1], SHORT).ids
    stream = fast.ask([], WORDS[0], LONG)
    pieces = iter(stream)
    read = next(pieces)
    real, steps = fast.runtime.decoder.step, []

    def fails_once(token: int) -> Any:
        steps.append(token)
        if len(steps) == 5:
            raise EdgeVLMError("The engine stumbled: try again.")
        return real(token)

    monkeypatch.setattr(fast.runtime.decoder, "step", fails_once)
    assert fast.answer([], WORDS[1], SHORT).ids == other
    with pytest.raises(EdgeVLMError, match="stumbled"):
        list(pieces)
    assert read
    for _ in range(2):
        with pytest.raises(EdgeVLMError, match="stumbled"):
            _ = stream.answer


def test_a_closed_runtime_is_a_sentence(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    for name in ("onnxruntime", "eager"):
        runtime = open_runtime(bundle, name)
        pipeline = Pipeline(bundle, runtime)
        stream = pipeline.ask([], WORDS[0])
        pieces = iter(stream)
        next(pieces)
        runtime.close()
        for call in (lambda p=pieces: next(p), lambda p=pipeline: p.answer([], WORDS[0])):  # type: ignore[misc]
            with pytest.raises(EdgeVLMError, match="The runtime is closed: open it again"):
                call()


def test_closing_waits_for_the_call_that_is_under_way(tiny_bundle: Path) -> None:
    """llama.cpp's context would be freed under a running call, which ends the process."""
    bundle = open_bundle(tiny_bundle)
    runtime = open_runtime(bundle, threads=1)
    pipeline = Pipeline(bundle, runtime)
    entered, order = threading.Event(), list[str]()
    real, closing = runtime.decoder.step, runtime.decoder.close

    def step(token: int) -> Any:
        entered.set()
        threading.Event().wait(0.2)
        order.append("step")
        return real(token)

    runtime.decoder.step = step  # type: ignore[method-assign]
    runtime.decoder.close = lambda: (order.append("close"), closing())[1]  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(pipeline.answer, [], WORDS[0], GenerateOptions(max_tokens=50))
        assert entered.wait(30)
        runtime.close()
        assert order[0] == "step" and order[-1] == "close"
        with pytest.raises(EdgeVLMError, match="The runtime is closed"):
            answer.result(30)
