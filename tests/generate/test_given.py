"""Every form in which a picture and a question may be given, and what is said about all others."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgevlm
from edgevlm.bundle.manifest import open_bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.generate.loop import GenerateOptions, Pipeline
from edgevlm.runtimes import open_runtime
from edgevlm.runtimes.base import Runtime

PICTURES = Path(edgevlm.__file__).parent / "assets" / "pictures"
THINGS, COFFEE = PICTURES / "scene-things.png", PICTURES / "coffee.jpg"
QUESTION = "What is in the picture?"
TEXT = {"type": "text", "text": QUESTION}
IMAGE = {"type": "image"}


class Untouchable:
    """An engine that must not be used."""

    name = device = "untouchable"

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the engine was asked for {name}")


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    """Prepares prompts; its engine fails the test."""
    return Pipeline(open_bundle(tiny_bundle), Runtime(Untouchable(), Untouchable()))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    with Image.open(THINGS) as image:
        return image.convert("RGB")


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def user(*content: object) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


def same(pipeline: Pipeline, first: tuple[Any, Any], second: tuple[Any, Any]) -> bool:
    """Whether two questions give the same token ids and the same pixels."""
    one, two = pipeline.prepare(*first), pipeline.prepare(*second)
    return np.array_equal(one.ids, two.ids) and all(map(np.array_equal, one.views, two.views))


def forms(image: Image.Image) -> Iterator[Any]:
    """The picture in every form."""
    data = THINGS.read_bytes()
    yield from (THINGS, str(THINGS), THINGS.as_uri(), data, bytearray(data), memoryview(data))
    yield from (image, np.asarray(image), np.asarray(image)[:, :, ::-1][:, :, ::-1])
    yield "data:image/png;base64," + encoded(image)
    yield "DATA:;BASE64," + encoded(image).replace("+", "%2B").replace("/", "%2F")


def test_a_picture_in_any_form_alone_or_in_a_list_or_in_a_message(pipeline: Pipeline, picture: Image.Image) -> None:
    expected = ([THINGS], QUESTION)
    for form in forms(picture):
        for images in (form, [form], (form,), iter([form])):
            assert same(pipeline, (images, QUESTION), expected), type(form)
        for item in ({**IMAGE, "image": form}, {**IMAGE, "path": form}, {**IMAGE, "url": form}):
            assert same(pipeline, ([], user(item, TEXT)), expected), item.keys()
        for url in (form, {"url": form}, {"url": form, "detail": "high"}):
            assert same(pipeline, ([], user({"type": "image_url", "image_url": url}, TEXT)), expected)


def test_pictures_of_items_and_of_the_list_keep_their_places(pipeline: Pipeline) -> None:
    """Items without a picture of their own take the list's in order."""
    names = [THINGS, COFFEE, PICTURES / "rocket.jpg"]
    expected = (names, user(IMAGE, IMAGE, TEXT, IMAGE))
    mixed = user({**IMAGE, "image": names[0]}, IMAGE, TEXT, {"type": "image_url", "image_url": {"url": str(names[2])}})
    assert same(pipeline, ([names[1]], mixed), expected)
    assert same(pipeline, (names[1], mixed), expected)
    assert not same(pipeline, ([names[1], names[0]], user(IMAGE, TEXT, IMAGE)), (names[:2], user(IMAGE, TEXT, IMAGE)))
    before = [dict(item) for item in mixed[0]["content"]]
    pipeline.prepare([names[1]], mixed)
    assert mixed[0]["content"] == before, "a caller's messages are not changed"


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_grey_and_transparent_arrays_are_as_pillows_images(pipeline: Pipeline, picture: Image.Image, mode: str) -> None:
    image = picture.convert(mode)
    if "A" in mode:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    array = np.asarray(image)
    assert same(pipeline, ([array], QUESTION), ([image], QUESTION))
    assert same(pipeline, (array, QUESTION), ([image], QUESTION))
    if mode == "L":
        assert same(pipeline, (array[:, :, None], QUESTION), ([image], QUESTION))


def test_a_bgr_frame_is_given_reversed(pipeline: Pipeline, picture: Image.Image) -> None:
    frame = np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])  # as OpenCV reads it
    assert same(pipeline, (frame[:, :, ::-1], QUESTION), ([picture], QUESTION))
    assert not same(pipeline, (frame, QUESTION), ([picture], QUESTION))


GREY = np.zeros((8, 8), np.uint8)
LIST = (
    r"give a path, the bytes of a file, a data: URL, a Pillow image or a uint8 array, a list of them, or \[\] for none"
)
BAD_PICTURES: dict[str, tuple[Any, str]] = {
    "None": (None, rf"The pictures are None: {LIST}\."),
    "a number": (5, rf"The pictures are of type int: {LIST}\."),
    "a dict": ({"image": THINGS}, rf"The pictures are of type dict: {LIST}\."),
    "an open file": (io.BytesIO(b"x"), rf"The pictures are of type BytesIO: {LIST}\."),
    "a list of None": ([None], r"A picture is None: give a path, the bytes of a file, .* or a uint8 array\."),
    "a list of numbers": ([3], r"A picture is of type int: give a path, "),
    "a list in a list": ([[THINGS]], r"A picture is of type list: give a path, "),
    "no such file": ("no-such-file.png", r"'no-such-file\.png' does not exist: check the path"),
    "an empty path": ("", r"The path of a picture is empty: name a file\."),
    "bytes of text": (b"nothing like a picture", r"is not a picture that can be opened: use JPEG"),
    "floats": (
        np.zeros((8, 8, 3), np.float32),
        r"A picture is an array of float32 \(8, 8, 3\): give uint8 from 0 to 255; values from 0 to 1 become it by "
        r"\(array \* 255\)\.astype\('uint8'\)\.",
    ),
    "16 bits": (np.zeros((8, 8), np.uint16), r"an array of uint16 \(8, 8\): give uint8 in RGB order"),
    "truth values": (np.zeros((8, 8), bool), r"an array of bool \(8, 8\): give uint8"),
    "no pixels": (np.zeros((0, 8, 3), np.uint8), r"an array of uint8 \(0, 8, 3\): give uint8 in RGB order"),
    "one axis": (np.zeros(8, np.uint8), r"an array of uint8 \(8,\): give uint8 in RGB order"),
    "a batch": (np.zeros((2, 8, 8, 3), np.uint8), r"\(2, 8, 8, 3\): give several pictures as a list, list\(array\)\."),
    "channels first": (np.zeros((3, 8, 8), np.uint8), r"channels come last, array\.transpose\(1, 2, 0\)\."),
    "a web address": (
        "https://example.org/a.png",
        r"The picture 'https://example\.org/a\.png' is on the network, which is never read: download it first\.",
    ),
    "a data URL cut": ("data:image/png;base64,AAA", r"The data: URL of a picture is damaged \(.*\): write it as "),
    "a data URL of text": ("data:text/plain,hello", r"The data: URL of a picture is damaged \(no ';base64,'\)"),
    "a data URL of no picture": ("data:image/png;base64," + "QUJD" * 9999, r"The image is not a picture"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_other_pictures_are_one_sentence_before_any_work(pipeline: Pipeline, name: str) -> None:
    images, pattern = BAD_PICTURES[name]
    with pytest.raises(EdgeVLMError, match=pattern) as caught:
        pipeline.ask(images, QUESTION)
    assert len(str(caught.value)) < 300, "a picture's bytes are not printed"


def test_a_torch_tensor_says_what_to_do(pipeline: Pipeline) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(EdgeVLMError, match=r"A picture is of type Tensor: give a path, .* or a uint8 array\."):
        pipeline.ask(torch.zeros((8, 8, 3), dtype=torch.uint8), QUESTION)


BAD_QUESTIONS: dict[str, tuple[Any, Any, str]] = {
    "None": ([], None, r"The question is None: give a text, or a list of messages such as "),
    "a number": ([], 5, r"The question is of type int: give a text"),
    "bytes": ([], b"What?", r"The question is of type bytes: give a text"),
    "one message": ([], user(TEXT)[0], r"The question is of type dict: give a text"),
    "empty": ([], "", r"The question is empty: write what you want to know\."),
    "white space": (THINGS, " \n\t", r"The question is empty: "),
    "half a character": ([], "What is \udcff?", r"The question holds a lone surrogate, .*: give it as valid Unicode"),
    "half a character in a message": ([], user({"type": "text", "text": "\ud83d"}), r"holds a lone surrogate"),
    "no messages": ([], [], r"The conversation is empty: ask at least one question\."),
    "messages of nothing": ([], [{"role": "user", "content": "  "}], r"The messages hold no text and no picture: "),
    "a message of None": ([], [None], r"Message 1 is malformed: "),
    "an item of None": ([], [{"role": "user", "content": [None]}], r"Message 1 is malformed: "),
    "a text of 5": ([], user({"type": "text", "text": 5}), r"(Message 1 is malformed|The messages hold no text)"),
    "another type": ([], user({"type": "audio", "audio": "a.wav"}, TEXT), r"Message 1 is malformed: "),
    "no picture for an item": ([], user(IMAGE, TEXT), r"has 1 image items for 0 pictures: give one picture for each"),
    "no item for a picture": ([THINGS, COFFEE], user(IMAGE, TEXT), r"has 1 image items for 2 pictures: "),
    "one more beside its own": (
        [COFFEE], user({**IMAGE, "image": THINGS}, TEXT), r"has 1 image items for 2 pictures: give one picture for each"
    ),
    "two pictures in one item": (
        [], user({**IMAGE, "image": THINGS, "path": COFFEE}, TEXT), r"has both 'image' and 'path': give one"
    ),
    "empty address": ([], user({"type": "image_url", "image_url": {}}, TEXT), r"'image_url' of .* no picture: "),
    "no address": ([], user({"type": "image_url"}, TEXT), r"An item of type 'image_url' of a message has no picture: "),
    "another key": ([], user({**IMAGE, "base64": "AAAA"}, TEXT), r"An item of type 'image' .* has 'base64': give its"),
    "a number as picture": ([], user({**IMAGE, "image": 5}, TEXT), r"A picture is of type int: "),
    "a web address": ([], user({**IMAGE, "url": "http://a/b.png"}, TEXT), r"is on the network, which is never read"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_QUESTIONS)
def test_other_questions_are_one_sentence_before_any_work(pipeline: Pipeline, name: str) -> None:
    images, question, pattern = BAD_QUESTIONS[name]
    with pytest.raises(EdgeVLMError, match=pattern):
        pipeline.ask(images, question)


@pytest.mark.parametrize(
    ("options", "max_tiles", "pattern"),
    [
        ({"max_tokens": 5}, None, r"The options are a dict: give GenerateOptions\(max_tokens=128\)\."),
        (64, None, r"The options are a int: give GenerateOptions"),
        (None, "2", r"The tile budget is '2': it should be 1 \(the whole picture only\) or more\."),
        (None, 0, r"The tile budget is 0: "),
        (None, 1.5, r"The tile budget is 1\.5: "),
    ],
)
def test_other_options_are_one_sentence(pipeline: Pipeline, options: Any, max_tiles: Any, pattern: str) -> None:
    with pytest.raises(EdgeVLMError, match=pattern):
        pipeline.ask(THINGS, QUESTION, options, max_tiles=max_tiles)


def test_a_pipeline_is_made_of_a_bundle_and_a_runtime(pipeline: Pipeline, tiny_bundle: Path) -> None:
    for bundle in (str(tiny_bundle), None):
        with pytest.raises(EdgeVLMError, match=r"A pipeline takes a Bundle, not a \w+: make it with open_bundle\."):
            Pipeline(bundle, pipeline.runtime)  # type: ignore[arg-type]
    with pytest.raises(EdgeVLMError, match=r"A pipeline takes a Runtime, not a str: make it with open_runtime\."):
        Pipeline(pipeline.bundle, "onnxruntime")  # type: ignore[arg-type]


def test_an_answer_begins_with_its_first_word(tmp_path: Path) -> None:
    """The default model's format makes it write a space first; transformers' decode keeps it."""
    from edgevlm.export.pipeline import ExportOptions, export_model

    bundle = open_bundle(export_model(ExportOptions("default", tmp_path / "b", gate=False)).folder)
    pipeline = Pipeline(bundle, open_runtime(bundle, threads=1))
    stream = pipeline.ask(os.fspath(THINGS), "What colour is the car?", GenerateOptions(max_tokens=8))
    pieces = list(stream)
    answer = stream.answer
    assert pipeline.prompter.decode(answer.ids).startswith(" ")
    assert answer.text == "".join(pieces) == pipeline.prompter.decode(answer.ids).lstrip() != ""
    pipeline.runtime.close()
