"""The Python API: load, ask, chat, cancel from another thread, asyncio, batches, and errors that travel."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgevlm
from edgevlm import errors
from edgevlm.api import Model, Request, load
from edgevlm.errors import BundleError, Closed, ContextFull, EdgeVLMError, ImageError, RuntimeFailed, Unsupported
from edgevlm.generate.chat import AskOptions

SHORT, LONG = AskOptions(max_tokens=6, max_tiles=1), AskOptions(max_tokens=400, max_tiles=1, ignore_stop=True)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[Model]:
    with load(tiny_bundle, threads=1) as made:
        yield made


@pytest.fixture
def own(tiny_bundle: Path) -> Iterator[Model]:
    with load(tiny_bundle, threads=1) as made:
        yield made


def slowed(model: Model, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.01) -> list[int]:
    """Each token takes a while; the list of those that were computed."""
    decoder, steps = model._pipeline().runtime.decoder, list[int]()
    real = decoder.step

    def step(token: int) -> Any:
        steps.append(token)
        time.sleep(seconds)
        return real(token)

    monkeypatch.setattr(decoder, "step", step)
    return steps


# --- import ------------------------------------------------------------------------------------------------


def test_the_import_is_light_and_knows_its_names() -> None:
    code = (
        "import sys, time; before = set(sys.modules); start = time.perf_counter(); import edgevlm; "
        "took = time.perf_counter() - start; heavy = {'numpy', 'PIL', 'tokenizers', 'onnxruntime'} & set(sys.modules); "
        "assert not heavy, heavy; "
        "assert callable(edgevlm.load) and {'load', 'Model', 'Chat'} <= set(dir(edgevlm)); "
        "assert 'torch' not in sys.modules; print(took)"
    )
    took = [float(subprocess.check_output([sys.executable, "-c", code], timeout=60)) for _ in range(3)]
    assert min(took) < 0.05  # the others may have met another program
    for name in edgevlm._LAZY:
        assert getattr(edgevlm, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'edgevlm' has no attribute 'lode'"):
        _ = edgevlm.lode


# --- asking ------------------------------------------------------------------------------------------------


def test_an_answer_and_what_the_model_is(tiny_bundle: Path, model: Model) -> None:
    answer = model.answer("What is this?", [PICTURE], SHORT)
    stream = model.ask("What is this?", PICTURE, SHORT)
    assert "".join(stream) == stream.answer.text == answer.text and stream.answer.ids == answer.ids
    info = model.info
    assert (info.runtime, info.context_length, info.gate_passed) == ("onnxruntime", 2048, None)
    files = [path for path in tiny_bundle.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert info.bytes == sum(path.stat().st_size for path in files) and "1 thread" in info.device


def test_options_of_every_kind(model: Model) -> None:
    one = model.answer("What is this?", [PICTURE.resize((200, 90))], AskOptions(max_tokens=1, max_tiles=1))
    many = model.answer("What is this?", [PICTURE.resize((200, 90))], AskOptions(max_tokens=1))
    assert one.timings.image_tokens < many.timings.image_tokens
    with pytest.raises(EdgeVLMError, match="max_tiles is '1': give a whole number, or None"):
        AskOptions(max_tiles="1")  # type: ignore[arg-type]
    with pytest.raises(EdgeVLMError, match="The options are a dict"):
        model.ask("What?", options={"max_tokens": 3})  # type: ignore[arg-type]


def test_what_cannot_be_loaded(tiny_bundle: Path, tmp_path: Path) -> None:
    for place in (tmp_path / "none", tmp_path, None, 5):
        with pytest.raises(BundleError):
            load(place)  # type: ignore[arg-type]
    (tmp_path / "manifest.json").write_text('{"schema": 2}')
    with pytest.raises(BundleError, match="lacks the field 'model'"):
        load(tmp_path)
    with pytest.raises(EdgeVLMError, match="Runtime 'tflite' does not exist"):
        load(tiny_bundle, "tflite")
    with pytest.raises(EdgeVLMError, match="threads is 'two': give a whole number, or None"):
        load(tiny_bundle, threads="two")  # type: ignore[arg-type]
    with pytest.raises(EdgeVLMError, match=r"unexpected keyword argument 'thread': see edgevlm\.load"):
        load(tiny_bundle, thread=2)
    with pytest.raises(BundleError, match="holds no GGUF files"):
        load(tiny_bundle, "llama.cpp")


def test_verify_hashes_the_large_files_too(tiny_bundle: Path, tmp_path: Path) -> None:
    import shutil

    from edgevlm.bundle import manifest

    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    large = max((path for path in copy.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(large.read_bytes())
    content[len(content) // 2] ^= 1
    large.write_bytes(content)
    assert large.stat().st_size <= manifest.SMALL or load(copy).close() is None  # type: ignore[func-returns-value]
    with pytest.raises(BundleError, match="was changed after the export"):
        load(copy, verify=True)


# --- cancelling --------------------------------------------------------------------------------------------


def test_a_stream_is_cancelled_from_another_thread_within_a_token(own: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = own.answer("What is this?", [PICTURE], LONG)
    steps = slowed(own, monkeypatch)
    stream = own.ask("What is this?", [PICTURE], LONG)
    seen = threading.Event()
    pieces: list[str] = []

    def read() -> None:
        for piece in stream:
            pieces.append(piece)
            seen.set()

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        assert seen.wait(30)
        count = len(steps)
        start = time.monotonic()
        stream.cancel()  # while the other thread waits for its next piece
        assert time.monotonic() - start < 0.5
        reading.result(30)
    answer = stream.answer
    assert answer.finish_reason == "cancelled" and answer.text == "".join(pieces)
    assert answer.ids == whole.ids[: len(answer.ids)] and len(steps) <= count + 2 < 100
    stream.cancel()
    assert own.answer("What is this?", [PICTURE], SHORT).ids == whole.ids[:6]


def test_cancelled_before_it_began_and_after_its_end(model: Model) -> None:
    stream = model.ask("What is this?", [PICTURE], LONG)
    stream.cancel()
    assert (stream.answer.text, stream.answer.ids, stream.answer.finish_reason) == ("", (), "cancelled")
    stream = model.ask("What is this?", [PICTURE], SHORT)
    ids = stream.answer.ids
    stream.cancel()
    assert stream.answer.ids == ids and stream.answer.finish_reason == "length"


def test_leaving_a_block_stops_the_answer(own: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = slowed(own, monkeypatch, 0)
    with own.ask("What is this?", [], LONG) as stream:
        next(iter(stream))
    count = len(steps)
    own.answer("What else?", [], AskOptions(max_tokens=1))
    assert len(steps) == count


# --- asyncio -----------------------------------------------------------------------------------------------


def test_answers_in_an_event_loop(model: Model) -> None:
    alone = [model.answer(words, [], LONG if number else SHORT) for number, words in enumerate(("One?", "Two?"))]

    async def ask() -> None:
        streams = [model.aask("One?", [], SHORT), model.aask("Two?", [], LONG)]

        async def read(stream: Any) -> str:
            return "".join([piece async for piece in stream])

        texts = await asyncio.gather(*map(read, streams))
        assert texts == [answer.text for answer in alone]
        assert [(await stream.answer()).ids for stream in streams] == [answer.ids for answer in alone]
        with pytest.raises(ImageError):
            await model.aask("What?", [b"no picture"]).answer()

    asyncio.run(ask())


def test_an_event_loop_cancels(own: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = slowed(own, monkeypatch)

    async def ask() -> None:
        async with own.aask("What is this?", [], LONG) as stream:
            async for _ in stream:
                break
        assert (await stream.answer()).finish_reason == "cancelled"
        first, waiting = own.aask("What is this?", [], LONG), own.aask("And this?", [], LONG)
        waiting.cancel()
        task = asyncio.ensure_future(first.answer())
        await asyncio.sleep(0.1)
        task.cancel()  # as a server does when its client goes
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(Closed, match="cancelled before its turn"):
            await waiting.answer()

    asyncio.run(ask())
    assert len(steps) < 200
    assert own.answer("What is this?", [], SHORT).finish_reason == "length"  # the worker is free


def test_an_event_loop_that_ends_early_keeps_no_worker(own: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = slowed(own, monkeypatch)

    async def ask() -> None:
        async for _ in own.aask("What is this?", [], LONG):
            break

    asyncio.run(ask())
    time.sleep(0.3)
    count = len(steps)
    time.sleep(0.2)
    assert len(steps) == count < 200


# --- batches -----------------------------------------------------------------------------------------------


def test_a_batch_is_in_order_and_its_errors_are_items(model: Model) -> None:
    def requests() -> Iterator[Any]:
        yield Request("One?")
        yield Request("Two?", [b"no picture"])
        yield "Three?"
        yield Request("Four?", PICTURE, AskOptions(max_tokens=2))
        yield Request("word " * 3000)

    found = list(model.batch(requests(), SHORT))
    assert inspect.isgenerator(model.batch([]))
    kinds = [type(item).__name__ for item in found]
    assert kinds == ["Answer", "ImageError", "EdgeVLMError", "Answer", "ContextFull"]
    assert found[0].ids == model.answer("One?", (), SHORT).ids and len(found[3].ids) == 2  # type: ignore[union-attr]
    full = found[4]
    assert isinstance(full, ContextFull) and full.limit == 2048 < full.needed


def test_a_batch_of_several_workers_is_the_same(model: Model, tiny_bundle: Path) -> None:
    """In order whatever takes how long, with errors as items, lazily, and closed when it is left."""
    taken = 0

    def requests(count: int) -> Iterator[Any]:
        nonlocal taken
        for number in range(count):
            taken += 1
            bad = [b"no picture"] if number % 7 == 3 else []
            yield Request(f"Number {number}?", bad, AskOptions(max_tokens=1 + 30 * (number % 3 == 0)))

    with load(tiny_bundle, threads=1, reuse=False) as plain:
        one, two = (list(plain.batch(requests(40), workers=workers)) for workers in (1, 2))
        kinds = [type(item).__name__ for item in two]
        assert kinds == ["ImageError" if number % 7 == 3 else "Answer" for number in range(40)]
        assert [getattr(item, "ids", None) for item in one] == [getattr(item, "ids", None) for item in two]
        taken, before = 0, threading.active_count()
        batch = plain.batch(requests(1000), workers=2)
        assert taken == 0 and inspect.isgenerator(batch)
        next(batch)
        assert 1 <= taken <= 10
        batch.close()
        assert threading.active_count() == before
    for workers in (0, True, 1.0, 1000):
        with pytest.raises(EdgeVLMError, match=r"workers is .*: give a whole number from 1 to 256"):
            model.batch([], workers=workers)  # type: ignore[arg-type]
    with pytest.raises(Closed):
        list(plain.batch([Request("What?")], workers=2))


# --- chats -------------------------------------------------------------------------------------------------


def test_a_chat_has_turns_that_can_be_taken_back(model: Model) -> None:
    chat = model.chat()
    assert chat.turns == () and chat.tokens_used == 0
    first = chat.answer("What is this?", [PICTURE], SHORT)
    used = chat.tokens_used
    assert used == first.timings.prompt_tokens + first.timings.answer_tokens
    second = chat.answer("And its colour?", (), SHORT)
    assert [turn.question for turn in chat.turns] == ["What is this?", "And its colour?"]
    assert chat.tokens_used > used and second.timings.image_tokens == first.timings.image_tokens
    chat.rewind()
    assert chat.tokens_used == used and len(chat.turns) == 1
    assert chat.answer("And its colour?", (), SHORT).ids == second.ids
    chat.rewind(2)
    assert chat.turns == () and chat.answer("What is this?", [PICTURE], SHORT).ids == first.ids
    for turns in (2, -1, True, "1", None):
        with pytest.raises(EdgeVLMError, match="turns cannot be taken back: give a number from 0 to 1"):
            chat.rewind(turns)  # type: ignore[arg-type]
    with pytest.raises(EdgeVLMError, match="The question is of type list: give a text"):
        chat.ask([{"role": "user", "content": "Hm?"}])  # type: ignore[arg-type]


def test_a_chats_picture_stays_what_it_was(model: Model, tmp_path: Path) -> None:
    path, array = tmp_path / "a.png", np.array(PICTURE)
    PICTURE.save(path)
    chats = [model.chat(), model.chat()]
    for chat, source in zip(chats, (path, array), strict=True):
        chat.answer("What is this?", [source], SHORT)
    path.unlink()
    array[:] = 0
    ids = {chat.answer("Is it?", (), SHORT).ids for chat in chats}
    assert len(ids) == 1


def test_only_whole_answers_are_turns(own: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = own.chat()
    stream = chat.ask("One?", (), LONG)
    next(iter(stream))
    stream.cancel()
    assert stream.answer.finish_reason == "cancelled" and chat.turns == ()
    with chat.ask("Two?", (), LONG) as stream:
        next(iter(stream))
    assert chat.turns == ()
    with pytest.raises(ImageError):
        chat.ask("Three?", [b"none"], SHORT)
    for piece in chat.ask("Four?", (), LONG):
        assert piece
        break
    assert chat.turns == ()
    stream = chat.ask("Five?", (), SHORT)  # not read before the next question
    chat.answer("Six?", (), SHORT)
    assert [turn.question for turn in chat.turns] == ["Five?", "Six?"]
    assert chat.turns[0].answer is stream.answer
    real = own._pipeline().runtime.decoder.forward

    def fails(*given: Any) -> Any:
        raise RuntimeFailed("The engine stumbled: try again.")

    monkeypatch.setattr(own._pipeline().runtime.decoder, "forward", fails)
    with pytest.raises(RuntimeFailed):
        chat.answer("Seven?", (), SHORT)
    monkeypatch.setattr(own._pipeline().runtime.decoder, "forward", real)
    assert len(chat.turns) == 2
    chat.answer("Eight?", (), SHORT)
    chat.close()
    chat.close()
    for call in (lambda: chat.ask("Nine?"), chat.rewind):
        with pytest.raises(Closed, match="The chat is closed"):
            call()


def test_a_chat_that_fills_its_context_says_so_and_goes_on(model: Model) -> None:
    chat = model.chat()
    chat.answer("word " * 300, (), SHORT)
    with pytest.raises(ContextFull) as caught:
        for _ in range(20):
            chat.answer("word " * 300, (), SHORT)
    assert caught.value.limit == 2048 < caught.value.needed and chat.tokens_used < 2048
    chat.rewind(len(chat.turns) - 1)
    assert chat.answer("word", (), SHORT).ids


def test_a_system_message(model: Model, tiny_bundle: Path) -> None:
    chat = model.chat("Answer in one word.")
    plain = model.chat()
    assert (
        chat.answer("What?", (), SHORT).timings.prompt_tokens > plain.answer("What?", (), SHORT).timings.prompt_tokens
    )
    with pytest.raises(EdgeVLMError, match="The system message is of type int"):
        model.chat(5)  # type: ignore[arg-type]
    with load(tiny_bundle, threads=1) as own:
        own._bundle.prompt_spec.chat.roles.pop("system")
        with pytest.raises(Unsupported, match="takes no system message"):
            own.chat("Be brief.")


def test_chats_and_questions_of_many_threads_do_not_mix(model: Model) -> None:
    def talk(number: int) -> list[tuple[int, ...]]:
        chat = model.chat()
        return [chat.answer(f"{number} and {turn}?", (), SHORT).ids for turn in range(3)]

    alone = [talk(number) for number in range(4)]
    assert len({tuple(ids) for ids in alone}) > 1
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(talk, range(4))) == alone


# --- the end -----------------------------------------------------------------------------------------------


def test_warm_up_trim_and_close(tiny_bundle: Path) -> None:
    model = load(str(tiny_bundle), threads=1)
    model.warm_up()
    ids = model.answer("What is this?", [PICTURE], SHORT).ids
    cache = model._pipeline().pictures
    assert cache.held > 0
    model.trim()
    assert cache.held == 0
    stream = model.ask("What is this?", [], LONG)
    next(iter(stream))
    model.trim("sessions")
    assert model._opened is None
    with pytest.raises(Closed, match="The runtime is closed"):
        list(stream)
    assert model.answer("What is this?", [PICTURE], SHORT).ids == ids
    with pytest.raises(EdgeVLMError, match="'all' cannot be trimmed: choose one of caches, sessions"):
        model.trim("all")
    chat = model.chat()
    model.close()
    model.close()
    for call in (lambda: model.ask("What?"), lambda: model.info, model.warm_up, model.chat, lambda: chat.ask("What?")):
        if call == model.chat:
            continue
        with pytest.raises(Closed, match="The model is closed: load it again"):
            call()
    with pytest.raises(Closed):
        list(model.batch([Request("What?")]))


def test_closing_ends_what_waits_in_an_event_loop(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tiny_bundle, threads=1)
    slowed(model, monkeypatch)

    async def ask() -> list[BaseException | Any]:
        streams = [model.aask("What is this?", [], LONG) for _ in range(3)]
        await asyncio.sleep(0.1)
        await asyncio.to_thread(model.close)
        waiting = (stream.answer() for stream in streams)
        return await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)

    assert [type(found) for found in asyncio.run(ask())] == [Closed] * 3


def test_features_on_disk_serve_a_second_model(tiny_bundle: Path, tmp_path: Path) -> None:
    ids = []
    for count in (0, 1):
        with load(tiny_bundle, threads=1, cache_folder=tmp_path / "cache", cache_bytes=0) as model:
            encoder = model._pipeline().runtime.encoder
            if count:
                encoder.encode = lambda views: pytest.fail("a view was encoded again")  # type: ignore[method-assign]
            ids.append(model.answer("What is this?", [PICTURE], SHORT).ids)
    assert ids[0] == ids[1] and list((tmp_path / "cache").iterdir())


KINDS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, EdgeVLMError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_errors_travel_between_processes(kind: type[EdgeVLMError]) -> None:
    error = ContextFull("It is full: ask for less.", 300, 200) if kind is ContextFull else kind("It failed: try again.")
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is kind and str(found) == str(error) and found.__dict__ == error.__dict__
    assert kind is EdgeVLMError or issubclass(kind, EdgeVLMError)


def test_every_kind_of_error_is_raised_somewhere() -> None:
    root = Path(edgevlm.__file__).parent.parent
    code = "".join(path.read_text() for name in ("edgevlm", "runtimes") for path in (root / name).rglob("*.py"))
    for kind in KINDS:
        assert f" {kind.__name__}(" in code.replace(f"class {kind.__name__}(", ""), kind
