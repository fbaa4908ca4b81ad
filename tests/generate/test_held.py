"""What a decoder holds is not read again, and an answer is what the same calls give by themselves."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from cases import heavy_but
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny.common import picture

from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.generate.chat import AskOptions, Chat, ChatTurn
from edgevlm.generate.loop import GenerateOptions, Pipeline
from edgevlm.inputs.layout import Layout, Span, behind, merge, positions, unchanged, visible
from edgevlm.models.spec import Attention, Block, Decoder, Mlp, Rope
from edgevlm.runtimes import open_runtime
from edgevlm.runtimes.base import ForkDecoder
from edgevlm.types import F32

SHORT = GenerateOptions(max_tokens=6, lookup=False)
ONE, OTHER = picture(50, 70, 1), picture(50, 70, 2)
FIRST, SECOND = "What is in the picture?", "And which colour does it have?"


class Counted:
    """A pipeline whose decoder's calls are written down: positions of each `forward`, and the logits after it."""

    def __init__(self, bundle: Bundle, name: str, reuse: bool = True) -> None:
        runtime = open_runtime(bundle, name, threads=None if name == "eager" else 1)
        self.pipeline, self.read, self.logits = Pipeline(bundle, runtime, reuse=reuse), list[int](), list[F32]()
        forward = runtime.decoder.forward

        def counted(embeds: F32, layout: Layout | None = None, *stopped: Callable[[], bool]) -> F32:
            logits = forward(embeds, layout, *stopped)
            if layout is not None:
                self.read.append(len(embeds))
                self.logits.append(logits)
            elif stopped:  # the rest of a prompt
                self.read[-1] += len(embeds)
                self.logits[-1] = logits
            return logits

        runtime.decoder.forward = counted  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture(params=["onnxruntime", "eager"])
def counted(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Counted]:
    made = Counted(bundle, request.param)
    yield made
    made.pipeline.runtime.close()


def near(ours: F32, theirs: F32) -> None:
    """Up to what float32 rounds."""
    assert np.abs(ours - theirs).max() < 2e-4 * max(1.0, float(np.abs(theirs).max()))


def anew(counted: Counted, images: Any, question: Any) -> F32:
    """Logits after a prompt that is read whole, by another runtime."""
    other = Counted(counted.pipeline.bundle, counted.pipeline.runtime.name, reuse=False)
    other.pipeline.answer(images, question, GenerateOptions(max_tokens=1))
    other.pipeline.runtime.close()
    return other.logits[-1]


# --- by definition -----------------------------------------------------------------------------------------

RULES = ("causal", "image", "prompt", "prefix")


def decoder(rule: str, axes: int, places: str) -> Decoder:
    rope = Rope(10000.0, 8, sections=(1, 1, 2) if axes == 3 else ())
    block = Block((Attention(1, 1, 8, rope="main"),), Mlp(8))
    return Decoder(16, 8, 64, (block,), (0,), ropes={"main": rope}, mask=rule, places=places)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    spans, at = [], 0
    for _ in range(draw(st.integers(0, 3))):
        at += draw(st.integers(0, 3))
        grid = draw(st.sampled_from([(1, 2), (2, 2), (1, 4)]))
        spans.append(Span(at, grid))
        at += grid[0] * grid[1]
    return Layout(at + draw(st.integers(1, 4)), tuple(spans))


def longest(d: Decoder, old: Layout, new: Layout, length: int) -> int:
    """By the definition: every position of the beginning sees the same ones, none of them later, and stands at the
    same place; pictures are whole and the same."""
    for n in range(length, 0, -1):
        ours, theirs = (visible(layout, d.mask, 0, length + 20) for layout in (old, new))
        same = np.array_equal(ours[:n], theirs[:n]) and not theirs[:n, n:].any()
        at, wanted = (positions(layout, d.axes, 0, n, d.places) for layout in (old, new))
        parts = [[span for span in layout.spans if span.start < n] for layout in (old, new)]
        whole = parts[0] == parts[1] and all(span.start + span.tokens <= n for span in parts[1])
        if same and np.array_equal(at, wanted) and whole:
            return n
    return 0


@settings(max_examples=300, deadline=None)
@given(layouts(), layouts(), st.booleans(), st.integers(0, 20), st.sampled_from(RULES), st.sampled_from([1, 3]))
def test_what_stays_is_the_longest_beginning_that_is_computed_alike(
    old: Layout, other: Layout, same: bool, length: int, rule: str, axes: int
) -> None:
    new = replace(other, spans=old.spans, length=old.length + 3) if same else other
    d = decoder(rule, axes, "grid")
    length = min(length, new.length - 1)
    assert unchanged(d, old, new, length) == longest(d, old, new, length)


def test_what_lies_behind_is_merged_alike() -> None:
    layout = Layout(9, (Span(1, (1, 2)), Span(5, (1, 3))))
    embeds, rows = np.zeros((9, 4), np.float32), [np.full((2, 4), 1.0, "f4"), np.full((3, 4), 2.0, "f4")]
    whole = merge(embeds, layout, rows)
    for start in (0, 3, 4, 5, 8):
        kept = [r for span, r in zip(layout.spans, rows, strict=True) if span.start >= start]
        np.testing.assert_array_equal(merge(embeds[start:], behind(layout, start), kept), whole[start:])


# --- one question after the other --------------------------------------------------------------------------


def test_a_second_question_about_a_picture_reads_only_itself(counted: Counted) -> None:
    pipeline = counted.pipeline
    pipeline.answer([ONE], FIRST, SHORT)
    answer = pipeline.answer([ONE], SECOND, SHORT)
    ids, span = pipeline.prepare([ONE], SECOND).ids, pipeline.prepare([ONE], SECOND).layout.spans[-1]
    assert counted.read[-1] < len(ids) - span.start - span.tokens
    assert answer.timings.reused_tokens == len(ids) - counted.read[-1]
    near(counted.logits[-1], anew(counted, [ONE], SECOND))


def test_a_conversation_reads_only_its_new_turn_and_is_the_same_calls(counted: Counted, bundle: Bundle) -> None:
    """A fresh runtime that is given the same calls gives the same tokens."""
    chat = Chat(lambda: counted.pipeline)
    first = chat.answer(FIRST, [ONE], SHORT)
    second = chat.answer(SECOND, (), SHORT)
    third = chat.answer(FIRST, [OTHER], SHORT)
    # This model's format writes a blank before an answer, and random weights do not always: then its words are read.
    for before, after in ((first, second), (second, third)):
        assert after.timings.reused_tokens >= before.timings.prompt_tokens - 1
    assert third.timings.reused_tokens == second.timings.prompt_tokens + len(second.ids) - 1
    assert counted.read == [
        answer.timings.prompt_tokens - answer.timings.reused_tokens for answer in (first, second, third)
    ]

    runtime = open_runtime(bundle, counted.pipeline.runtime.name, threads=1 if counted.read else None)
    other = Pipeline(bundle, runtime)
    encoder, engine = runtime.encoder, runtime.decoder
    turns = chat.turns
    for number, answer in enumerate((first, second, third)):
        prompt = other.prepare([], asked(other, turns[:number], turns[number]))
        position = answer.timings.reused_tokens
        engine.rewind(position)
        features = encoder.encode(prompt.views[prompt.views_before(position) :])
        embeds = merge(engine.embed(prompt.ids[position:]), behind(prompt.layout, position), features)
        logits, ids = engine.forward(embeds, prompt.layout), list[int]()
        while len(ids) < len(answer.ids):
            ids.append(int(logits.argmax()))
            if len(ids) < len(answer.ids):
                logits = engine.step(ids[-1])
        assert tuple(ids) == answer.ids
    runtime.close()


def asked(pipeline: Pipeline, turns: Sequence[ChatTurn], last: ChatTurn) -> Any:
    """The messages in which a chat asks `last` behind `turns`."""
    chat = Chat(lambda: pipeline)
    chat._turns = [*turns, last]
    return chat.messages(pipeline.prompter)[:-1]


def test_logits_of_a_conversation_are_those_of_reading_it_anew(counted: Counted) -> None:
    chat = Chat(lambda: counted.pipeline)
    chat.answer(FIRST, [ONE], SHORT)
    chat.answer(SECOND, [OTHER], SHORT)
    near(counted.logits[-1], anew(counted, [], asked(counted.pipeline, chat.turns[:1], chat.turns[1])))


def test_another_picture_of_the_same_size_is_read(counted: Counted) -> None:
    counted.pipeline.answer([ONE], FIRST, SHORT)
    counted.pipeline.answer([OTHER], FIRST, SHORT)
    spans = counted.pipeline.prepare([OTHER], FIRST).layout.spans
    assert counted.read[-1] == counted.read[0] - spans[0].start
    near(counted.logits[-1], anew(counted, [OTHER], FIRST))
    counted.pipeline.answer([OTHER, ONE], FIRST, SHORT)
    near(counted.logits[-1], anew(counted, [OTHER, ONE], FIRST))


def test_the_same_question_again_reads_one_position(counted: Counted) -> None:
    said = [counted.pipeline.answer([ONE], FIRST, SHORT) for _ in range(3)]
    assert counted.read[1:] == [1, 1] and {answer.ids for answer in said} == {said[0].ids}


def test_without_reuse_every_prompt_is_read_whole(bundle: Bundle) -> None:
    counted = Counted(bundle, "onnxruntime", reuse=False)
    said = [counted.pipeline.answer([ONE], FIRST, SHORT) for _ in range(2)]
    assert counted.read[0] == counted.read[1] == said[1].timings.prompt_tokens
    assert said[1].timings.reused_tokens == 0
    counted.pipeline.runtime.close()


def test_drafts_leave_what_is_held_right(bundle: Bundle) -> None:
    """Calls of several tokens may be ahead of the answer, or be taken back."""
    counted, plain = Counted(bundle, "onnxruntime"), Counted(bundle, "onnxruntime", reuse=False)
    options = GenerateOptions(max_tokens=60, ignore_stop=True)
    looked = 0
    for question in ("say la la la la la", "say la la la la la la la", FIRST, "a b c a b c a b c a b"):
        ours, theirs = (made.pipeline.answer([], question, options) for made in (counted, plain))
        assert ours.ids == theirs.ids
        looked += ours.timings.looked_up
    assert looked > 0 and sum(counted.read) < sum(plain.read)
    for made in (counted, plain):
        made.pipeline.runtime.close()


def behind_pictures(pipeline: Pipeline, pictures: Sequence[Image.Image]) -> int:
    span = pipeline.prepare(pictures, FIRST).layout.spans[-1]
    return int(span.places[-1]) + 1


@pytest.mark.parametrize("engine", ["onnxruntime", "onnxruntime portable", "eager", "llama.cpp"])
def test_overwritten_states_go_back_to_where_they_were_copied(engine: str, tmp_path: Path) -> None:
    """Other questions about a picture, a turn that was taken back, pictures that alternate."""
    name, _, portable = engine.partition(" ")
    if name == "llama.cpp":
        pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (pip install '.[llama]')")
    importlib.import_module("tiny.lfm2_vl").build(tmp_path / "checkpoint")
    targets = ("onnx", "gguf") if name == "llama.cpp" else ("onnx",)
    options = ExportOptions(str(tmp_path / "checkpoint"), tmp_path / "bundle", targets, quantize="fp32", gate=False)
    bundle = open_bundle(export_model(options).folder)
    runtime = open_runtime(bundle, name, portable=bool(portable), threads=None if name == "eager" else 1)
    pipeline = Pipeline(bundle, runtime)
    plain = Pipeline(bundle, open_runtime(bundle, "eager"), reuse=False)
    long = GenerateOptions(max_tokens=6, ignore_stop=True)
    place = behind_pictures(pipeline, [ONE])
    reused = []
    for pictures, question in (([ONE], FIRST), ([ONE], SECOND), ([OTHER], FIRST), ([OTHER], SECOND), ([ONE], FIRST)):
        said = pipeline.answer(pictures, question, long)
        assert said.ids == plain.answer(pictures, question, long).ids
        reused.append(said.timings.reused_tokens)
    assert reused == [0, place, 0, behind_pictures(pipeline, [OTHER]), 0]
    chat, other = Chat(lambda: pipeline), Chat(lambda: plain)
    for question in (FIRST, SECOND, FIRST, SECOND):
        assert (
            chat.answer(question, [ONE] * (not chat.turns), long).ids
            == other.answer(question, [ONE] * (not other.turns), long).ids
        )
    for each in (chat, other):
        each.rewind(1)
        each.answer("And where?", (), long)
        each.rewind(3)
        each.answer("And when?", (), long)
    assert chat.turns[-1].answer.ids == other.turns[-1].answer.ids
    assert chat.turns[-1].answer.timings.reused_tokens >= place
    copied = cast(ForkDecoder, runtime.decoder).copied()
    kept = {name: np.array(value) for name, value in copied.items()}
    pipeline.answer([OTHER], SECOND, GenerateOptions(max_tokens=30, ignore_stop=True))
    for name, value in copied.items():  # a copy, and no view of what the engine goes on to use
        whole = value
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        assert whole.flags.owndata
        np.testing.assert_array_equal(value, kept[name])
    for each in (pipeline, plain):
        each.runtime.close()


@pytest.mark.parametrize("name", ["onnxruntime", "llama.cpp"])
def test_a_prompt_that_is_cancelled_is_left_between_two_calls(
    name: str, gguf_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "llama.cpp":
        pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (pip install '.[llama]')")
        monkeypatch.setattr("edgevlm.runtimes.llama.decoder.BATCH", 16)
    else:
        monkeypatch.setattr("edgevlm.runtimes.ort.runtime.PROMPT_PART", 16)
    runtime = open_runtime(gguf_bundle("fp32"), name, threads=1)
    pipeline, decoder = Pipeline(gguf_bundle("fp32"), runtime), runtime.decoder
    wanted = pipeline.answer([ONE], FIRST, SHORT).ids
    decoder.rewind(0)
    call, calls = "_run" if name == "onnxruntime" else "_decode", list[int]()
    real = getattr(decoder, call)

    def counted(*args: Any, **named: Any) -> Any:
        calls.append(decoder.position)
        if len(calls) == 2:
            stream.cancel()
        return real(*args, **named)

    monkeypatch.setattr(decoder, call, counted)
    stream = pipeline.ask([ONE], FIRST, SHORT)
    assert stream.answer.finish_reason == "cancelled" and stream.answer.ids == () and stream.answer.text == ""
    prompt, read = pipeline.prepare([ONE], FIRST), decoder.position
    assert len(calls) == 2 and 0 < read < len(prompt.ids)
    again = pipeline.answer([ONE], FIRST, SHORT)
    # A view that was cut is read again; what lies before it is not.
    (cut,) = [span for span in prompt.layout.spans if span.start < read < span.start + span.tokens]
    assert again.ids == wanted and again.timings.reused_tokens == cut.start
    runtime.close()


# --- what is not trusted -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("call", ["step", "forward", "embed"])
def test_what_was_interrupted_is_read_again(counted: Counted, call: str, error: type[BaseException]) -> None:
    pipeline, decoder = counted.pipeline, counted.pipeline.runtime.decoder
    wanted = pipeline.answer([ONE], FIRST, SHORT).ids
    real = getattr(decoder, call)

    def interrupted(*args: Any) -> Any:
        real(*args)
        raise error

    setattr(decoder, call, interrupted)
    with pytest.raises(error):
        pipeline.answer([ONE], SECOND, SHORT)
    setattr(decoder, call, real)
    again = pipeline.answer([ONE], FIRST, SHORT)
    assert again.timings.reused_tokens == 0 and again.ids == wanted


def test_a_stream_that_was_left_is_held_as_far_as_it_came(counted: Counted) -> None:
    pipeline = counted.pipeline
    wanted = pipeline.answer([], SECOND, SHORT).ids
    stream = pipeline.ask([], FIRST, replace(SHORT, max_tokens=100))
    next(iter(stream))
    del stream
    gc.collect()
    again = pipeline.answer([], SECOND, SHORT)
    assert 0 < again.timings.reused_tokens < again.timings.prompt_tokens - 1 and again.ids == wanted
    stream = pipeline.ask([], FIRST, replace(SHORT, max_tokens=100))
    next(iter(stream))
    stream.cancel()
    assert stream.answer.finish_reason == "cancelled" and 0 < len(stream.answer.ids) < 100
    again = pipeline.answer([], SECOND, SHORT)
    assert again.timings.reused_tokens > 0 and again.ids == wanted


def test_a_decoder_that_somebody_else_used_is_not_trusted(counted: Counted) -> None:
    pipeline, decoder = counted.pipeline, counted.pipeline.runtime.decoder
    wanted = pipeline.answer([ONE], FIRST, SHORT).ids
    other = pipeline.prepare([], "Something else, of about as many words as fit.", 1)
    uses: list[Callable[[], object]] = [
        lambda: decoder.rewind(0),
        lambda: (decoder.rewind(0), decoder.forward(decoder.embed(other.ids), other.layout)),
        lambda: (decoder.rewind(0), [decoder.step(int(token)) for token in other.ids] * 2),
        lambda: Pipeline(pipeline.bundle, pipeline.runtime).answer([OTHER], SECOND, SHORT),
    ]
    for use in uses:
        use()
        again = pipeline.answer([ONE], FIRST, SHORT)
        assert again.timings.reused_tokens == 0 and again.ids == wanted


# --- every kind of decoder ---------------------------------------------------------------------------------

# Position axes; masks that open pictures, and windows; prompts that see themselves; states that are replaced; levels
# of features; a second table.
FAMILIES = {
    "qwen2_5_vl": True, "qwen3_vl": True, "gemma3": True, "gemma3n": True, "paligemma": False, "lfm2_vl": True,
    "qwen3_5": True, "hunyuan_vl": True, "glm4v": True, "phi4_multimodal": True, "minicpmv": True,
}  # fmt: skip


@pytest.mark.parametrize("name", heavy_but(["qwen2_5_vl", "gemma3", "paligemma", "lfm2_vl"], FAMILIES))
def test_every_decoder_says_what_it_says_anew(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"tiny.{name}")
    module.build(tmp_path / "checkpoint")
    options = ExportOptions(str(tmp_path / "checkpoint"), tmp_path / "bundle", quantize="fp32", gate=False)
    bundle = open_bundle(export_model(options).folder)
    d = bundle.manifest.spec.decoder
    counted = Counted(bundle, "onnxruntime")
    pipeline, long = counted.pipeline, GenerateOptions(max_tokens=8, ignore_stop=True)
    pictures: list[Image.Image] = [ONE] if name in ("paligemma", "moondream") else [ONE, OTHER]
    pipeline.answer(pictures, FIRST, long)
    second = pipeline.answer(pictures, SECOND, long)
    near(counted.logits[-1], anew(counted, pictures, SECOND))
    # A prompt that sees itself is another one with every question.
    assert (second.timings.reused_tokens > 0) == (d.mask not in ("prompt", "prefix"))
    if d.replaces:  # what is overwritten was copied behind the pictures
        assert second.timings.reused_tokens == behind_pictures(pipeline, pictures)
    if not FAMILIES[name]:
        return
    chat = Chat(lambda: pipeline)
    first = chat.answer(FIRST, [ONE], long)
    answer = chat.answer(SECOND, [], long)
    question = asked(pipeline, chat.turns[:1], chat.turns[1])
    near(counted.logits[-1], anew(counted, [], question))
    # An answer in bytes that are no text, or whose thinking is left out later, stands in other tokens then.
    held = [*pipeline.prepare([ONE], FIRST).ids.tolist(), *first.ids[:-1]]
    same = [one == other for one, other in zip(held, pipeline.prepare([], question).ids.tolist(), strict=False)]
    shared = same.index(False) if False in same else len(held)
    assert shared >= first.timings.prompt_tokens or d.replaces
    copied = behind_pictures(pipeline, [ONE]) if d.replaces else shared
    assert answer.timings.reused_tokens == (shared if shared == len(held) else copied)
    pipeline.runtime.close()


# --- every engine ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "engine", ["onnxruntime portable", "llama.cpp", pytest.param("coreml", marks=pytest.mark.heavy)]
)
def test_every_engine_goes_on_where_it_was(
    engine: str, gguf_bundle: Callable[..., Bundle], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A conversation with a picture in its second turn, and a turn that was taken back, against reading it whole."""
    name, _, portable = engine.partition(" ")
    if name == "coreml":
        pytest.importorskip("coremltools", reason="coremltools is not installed (pip install '.[coreml]')")
        out = ExportOptions(str(tiny_checkpoint), tmp_path / "b", ("coreml",), quantize="fp16", gate=False)
        bundle = open_bundle(export_model(out).folder)
    else:
        if name == "llama.cpp":
            pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (pip install '.[llama]')")
        bundle = gguf_bundle("fp32")
    runtimes = [open_runtime(bundle, name, portable=bool(portable), storage="fp32") for _ in range(2)]
    ours, theirs = (
        Pipeline(bundle, runtime, reuse=reuse) for runtime, reuse in zip(runtimes, (True, False), strict=True)
    )
    options = AskOptions(max_tokens=5, max_tiles=1, lookup=False)
    chat, plain = Chat(lambda: ours), Chat(lambda: theirs)
    steps: list[Callable[[Chat], object]] = [
        lambda c: c.answer(FIRST, (), options).ids,
        lambda c: c.answer(SECOND, [ONE], options).ids,
        lambda c: c.rewind(1),
        lambda c: c.answer(SECOND, [OTHER], options).ids,
        lambda c: c.answer(FIRST, (), options).ids,
    ]
    for step in steps:
        assert step(chat) == step(plain)
    assert all(turn.answer.timings.reused_tokens > 0 for turn in chat.turns[1:])
    assert not any(turn.answer.timings.reused_tokens for turn in plain.turns)
    for runtime in runtimes:
        runtime.close()
