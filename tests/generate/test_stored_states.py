"""States of a decoder on disk: another process goes on from them, bit for bit, and trusts nothing that is damaged."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny.common import picture

from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.generate.array_folder import SUFFIX
from edgevlm.generate.loop import GenerateOptions, Pipeline
from edgevlm.generate.opening import open_pipeline
from edgevlm.types import F32

LONG = GenerateOptions(max_tokens=12, ignore_stop=True, lookup=False)
ONE, OTHER = picture(50, 70, 1), picture(50, 70, 2)
FIRST, SECOND = "What is in the picture?", "And which colour does it have?"


class Process:
    """What a new process has: a pipeline of its own. Views that are encoded and logits after prompts are kept."""

    def __init__(self, bundle: Bundle, folder: Path | None, **options: Any) -> None:
        self.pipeline = open_pipeline(bundle, threads=1, cache_folder=folder, **options)
        self.encoded, self.logits = 0, list[F32]()
        runtime = self.pipeline.runtime
        encode, forward = runtime.encoder.encode, runtime.decoder.forward

        def encoding(views: Any) -> Any:
            self.encoded += len(views)
            return encode(views)

        def reading(*given: Any) -> Any:
            self.logits.append(forward(*given))
            return self.logits[-1]

        runtime.encoder.encode = encoding  # type: ignore[method-assign]
        runtime.decoder.forward = reading  # type: ignore[method-assign]

    def ask(self, pictures: Any, question: Any, max_tiles: int | None = None) -> tuple[tuple[int, ...], int]:
        """The answer's tokens, and how many of the prompt's were not read."""
        answer = self.pipeline.answer(pictures, question, LONG, max_tiles=max_tiles)
        return answer.ids, answer.timings.reused_tokens


def once(
    bundle: Bundle, folder: Path | None, pictures: Any, question: Any, max_tiles: int | None = None, **options: Any
) -> Any:
    """The answer, what was reused, the views that were encoded and the logits of a process of its own."""
    process = Process(bundle, folder, **options)
    ids, reused = process.ask(pictures, question, max_tiles)
    process.pipeline.runtime.close()
    return ids, reused, process.encoded, process.logits


def place(bundle: Bundle, pictures: Any) -> int:
    pipeline: Pipeline = open_pipeline(bundle, threads=1)
    span = pipeline.prepare(pictures, FIRST).layout.spans[-1]
    pipeline.runtime.close()
    return int(span.places[-1]) + 1


@pytest.fixture(params=["smolvlm", "int8", "lfm2_vl", "qwen2_5_vl"], scope="module")
def bundle(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: Any) -> Iterator[Bundle]:
    """Plain; keys and values in 8 bits; states that are overwritten; several position axes."""
    folder = tmp_path_factory.mktemp(request.param)
    source, cache = tiny_checkpoint, "int8" if request.param == "int8" else "float32"
    if request.param not in ("smolvlm", "int8"):
        source = folder / "checkpoint"
        importlib.import_module(f"tiny.{request.param}").build(source)
    options = ExportOptions(str(source), folder / "bundle", quantize="fp32", gate=False, kv_cache=cache)
    yield open_bundle(export_model(options).folder)


def test_another_process_goes_on_bit_for_bit(bundle: Bundle, tmp_path: Path) -> None:
    ids, reused, encoded, logits = once(bundle, tmp_path, [ONE], FIRST)
    assert reused == 0 and encoded > 0
    again, reused, encoded, others = once(bundle, tmp_path, [ONE], FIRST)
    assert (again, reused, encoded) == (ids, place(bundle, [ONE]), 0)
    for ours, theirs in zip(logits[-len(others) :], others, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_another_question_goes_on_and_another_picture_does_not(bundle: Bundle, tmp_path: Path) -> None:
    once(bundle, tmp_path, [ONE], FIRST)
    alone = once(bundle, None, [ONE], SECOND)
    found = once(bundle, tmp_path, [ONE], SECOND)
    assert found[0] == alone[0] and found[1] == place(bundle, [ONE]) and found[2] == 0
    assert once(bundle, tmp_path, [OTHER], FIRST)[:2] == (once(bundle, None, [OTHER], FIRST)[0], 0)
    assert once(bundle, tmp_path, [], FIRST)[1:3] == (0, 0)
    behind = [{"role": "user", "content": [{"type": "text", "text": "Look."}, {"type": "image"}]}]
    assert once(bundle, tmp_path, [ONE], behind)[1] == 0


def test_several_pictures_and_a_conversation_go_on(bundle: Bundle, tmp_path: Path) -> None:
    process = Process(bundle, tmp_path)
    for question in (FIRST, SECOND):  # the second finds in memory what is on disk, too
        process.ask([ONE, OTHER], question)
    process.pipeline.runtime.close()
    assert once(bundle, tmp_path, [ONE, OTHER], SECOND)[1:3] == (place(bundle, [ONE, OTHER]), 0)
    assert once(bundle, tmp_path, [OTHER, ONE], SECOND)[1] == 0


def test_a_picture_that_is_known_is_not_decoded_again(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgevlm.generate import pictures

    ONE.save(tmp_path / "one.png")
    process = Process(bundle, tmp_path / "kept")
    ids, _ = process.ask(tmp_path / "one.png", FIRST)
    views = process.pipeline.prepare(tmp_path / "one.png", FIRST).views
    process.pipeline.runtime.close()
    decoded: list[object] = []
    real = pictures.decode_image
    monkeypatch.setattr(pictures, "decode_image", lambda *given: decoded.append(1) or real(*given))
    assert once(bundle, tmp_path / "kept", tmp_path / "one.png", FIRST)[0] == ids and not decoded
    process = Process(bundle, tmp_path / "kept")
    prompt = process.pipeline.prepare(tmp_path / "one.png", SECOND)
    for ours, theirs in zip(prompt.views, views, strict=True):  # where they are asked for after all
        np.testing.assert_array_equal(ours, theirs)
    assert decoded == [1]
    assert once(bundle, tmp_path / "kept", tmp_path / "one.png", FIRST, max_tiles=1)[2] == len(
        set(process.pipeline.prepare(tmp_path / "one.png", FIRST, max_tiles=1).keys) - set(prompt.keys)
    )
    process.pipeline.runtime.close()


def test_without_reuse_and_without_such_a_decoder_the_prompt_is_read(bundle: Bundle, tmp_path: Path) -> None:
    for options in ({"reuse": False}, {"runtime": "eager"}):
        for _ in range(2):
            assert once(bundle, tmp_path, [ONE], FIRST, **options)[1] == 0


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-5],
    "a bit": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_states_are_read_anew(name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    ids = once(bundle, tmp_path, [ONE], FIRST)[0]
    for path in tmp_path.glob(f"*{SUFFIX}"):
        path.write_bytes(DAMAGES[name](path.read_bytes()))
    assert once(bundle, tmp_path, [ONE], FIRST)[:2] == (ids, 0)
    assert once(bundle, tmp_path, [ONE], FIRST)[:2] == (ids, place(bundle, [ONE]))


def test_whole_states_of_another_form_are_read_anew(tiny_bundle: Path, tmp_path: Path) -> None:
    """A file that is whole, under the right name, with what another model would have."""
    bundle, process = open_bundle(tiny_bundle), Process(open_bundle(tiny_bundle), tmp_path)
    ids, _ = process.ask([ONE], FIRST)
    prompt, length = process.pipeline.prepare([ONE], FIRST), place(bundle, [ONE])
    stored = process.pipeline._held._stored
    assert stored is not None
    whole = dict(stored.read(prompt, length) or {})
    name, array = next(iter(whole.items()))
    for other in (
        {},
        {**whole, "more": array},
        {key: value for key, value in whole.items() if key != name},
        {**whole, name: array[:, 1:]},
        {**whole, name: array.astype(np.int8)},
    ):
        stored.write(prompt, length, other)
        assert once(bundle, tmp_path, [ONE], FIRST)[:2] == (ids, 0)
        assert stored.read(prompt, length) is not None  # written again
    process.pipeline.runtime.close()
