"""Boxes and points in answers: conventions by their published definitions, rules of pictures by their own formulas."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.grounding import Box, Frame, Grounding, Point, find, frame_of
from edgevlm.inputs.preprocess import plan, preprocess
from edgevlm.inputs.rules import Crop, Fit, Native, Pad, RatioTiles, Rule, Stretch, TilesThenWhole, WholeThenTiles
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io import limits
from edgevlm.scenes.question import loc_answer

Edges = tuple[float, float, float, float]  # x0, y0, x1, y1


@dataclass(frozen=True)
class Convention:
    """write: labels and boxes, as fractions of a frame of some width and height, to an answer."""

    grounding: Grounding
    write: Callable[[list[tuple[str, Edges]], int, int], str]


def _thousandths(edges: Edges) -> list[int]:
    return [round(value * 1000) for value in edges]


def _absolute(boxes: list[tuple[str, Edges]], width: int, height: int) -> str:
    """Qwen2.5-VL (arXiv 2502.13923, section 2.2): JSON with pixels of the resized picture, in a fence."""
    sides = (width, height, width, height)
    found = [
        {"bbox_2d": [round(v * side) for v, side in zip(edges, sides, strict=True)], "label": label}
        for label, edges in boxes
    ]
    return f"```json\n{json.dumps(found)}\n```"


def _relative(boxes: list[tuple[str, Edges]], width: int, height: int) -> str:
    """Qwen3-VL's cookbook for 2D grounding: the same in thousandths."""
    return json.dumps([{"bbox_2d": _thousandths(edges), "label": label} for label, edges in boxes])


def _y_first(boxes: list[tuple[str, Edges]], width: int, height: int) -> str:
    """Gemma's answers, in the form of Google's guide to object detection: y before x, in thousandths."""
    found = [(label, _thousandths(edges)) for label, edges in boxes]
    return json.dumps([{"box_2d": [y0, x0, y1, x1], "label": label} for label, (x0, y0, x1, y1) in found])


def _tagged(boxes: list[tuple[str, Edges]], width: int, height: int) -> str:
    """InternVL (arXiv 2404.16821, its grounding data): <ref>label</ref><box>[[x1, y1, x2, y2]]</box>."""
    return " and ".join(f"<ref>{label}</ref><box>[{_thousandths(edges)}]</box>" for label, edges in boxes)


def _pairs(boxes: list[tuple[str, Edges]], width: int, height: int) -> str:
    """Qwen2-VL (arXiv 2409.12191, table 1): (x1,y1),(x2,y2) between tokens."""
    return "".join(
        "<|object_ref_start|>{}<|object_ref_end|><|box_start|>({},{}),({},{})<|box_end|>".format(
            label, *_thousandths(e)
        )
        for label, e in boxes
    )


def _loc_1024(boxes: list[tuple[str, Edges]], width: int, height: int) -> str:
    """PaliGemma (arXiv 2407.07726, section 3.2.5): y0 x0 y1 x1 of 1024 bins, then the label, `;` between boxes."""
    bins = [(label, [min(1023, int(v * 1024)) for v in edges]) for label, edges in boxes]
    return " ; ".join(f"<loc{b[1]:04}><loc{b[0]:04}><loc{b[3]:04}><loc{b[2]:04}> {label}" for label, b in bins)


def _loc_64(boxes: list[tuple[str, Edges]], width: int, height: int) -> str:
    """The default model's, which has no labels: written as its training data is."""
    return " ".join(loc_answer(edges, 64) for _, edges in boxes)


CONVENTIONS = {
    "pixels": Convention(Grounding("json"), _absolute),
    "thousandths": Convention(Grounding("json", 1000), _relative),
    "y first": Convention(Grounding("json", 1000, y_first=True), _y_first),
    "tagged": Convention(
        Grounding("tagged", 1000, open="<box>", close="</box>", label_open="<ref>", label_close="</ref>"), _tagged
    ),
    "pairs": Convention(
        Grounding("tagged", 1000, False, False, "<|box_start|>", "<|box_end|>", "<|object_ref_start|>",
                  "<|object_ref_end|>"), _pairs,
    ),
    "loc 1024": Convention(Grounding("tokens", 1024, y_first=True, open="<loc", close=">"), _loc_1024),
    "loc 64": Convention(Grounding("tokens", 64, middle=True, open="<loc_", close=">"), _loc_64),
}  # fmt: skip


def _whole(x: float, y: float, width: int, height: int, side: int) -> tuple[float, float, int, int]:
    return x / width, y / height, side, side


def _padded(x: float, y: float, width: int, height: int, side: int) -> tuple[float, float, int, int]:
    most = max(width, height)
    return (x + (most - width) // 2) / most, (y + (most - height) // 2) / most, side, side


def _fitted(x: float, y: float, width: int, height: int, side: int) -> tuple[float, float, int, int]:
    """The long edge is `side`, the other at least 14 (DeepSeek-VL)."""
    wide, high = (max(round(edge * side / max(width, height)), 14) for edge in (width, height))
    left, top = (side - wide) // 2, (side - high) // 2
    return (x * wide / width + left) / side, (y * high / height + top) / side, side, side


def _cropped(x: float, y: float, width: int, height: int, side: int) -> tuple[float, float, int, int]:
    """The short edge to `side` + 8, then the middle (CLIP)."""
    short = side + 8
    long = int(short * max(width, height) / min(width, height))
    wide, high = (short, long) if width <= height else (long, short)
    return (x * wide / width - (wide - side) // 2) / side, (y * high / height - (high - side) // 2) / side, side, side


def _native(x: float, y: float, width: int, height: int, side: int) -> tuple[float, float, int, int]:
    high, wide = smart_resize(height, width, 28, 56 * 56, 28 * 28 * 1280)
    return x / width, y / height, wide, high


SIDE = 96
RULES: dict[str, tuple[Rule, Callable[..., tuple[float, float, int, int]]]] = {
    "stretch": (Stretch(SIDE), _whole),
    "pad": (Pad(SIDE, (0, 0, 0)), _padded),
    "fit": (Fit(SIDE, 14, (0, 0, 0)), _fitted),
    "crop": (Crop(SIDE + 8, SIDE), _cropped),
    "tiles, then whole": (TilesThenWhole(SIDE, 4 * SIDE, 4096, 2, True), _whole),
    "whole, then tiles": (WholeThenTiles(SIDE, 4 * SIDE, True, "bicubic"), _whole),
    "tiles by ratio": (RatioTiles(SIDE, 1, 6, True), _whole),
    "native": (Native(28, 56 * 56, 28 * 28 * 1280), _native),
}


def picture_spec(rule: Rule) -> ImageSpec:
    return ImageSpec(2, rule, "bilinear", (255,) * 3, 1 / 255, (0.5,) * 3, (0.5,) * 3, None, 16)


def frame(rule: Rule, width: int, height: int) -> Frame:
    return frame_of((width, height), plan(width, height, picture_spec(rule)))


@st.composite
def pictures(draw: st.DrawFn) -> tuple[int, int, list[tuple[str, Edges]]]:
    """A size, and labelled boxes in it."""
    width, height = draw(st.integers(8, 900)), draw(st.integers(8, 900))
    boxes = []
    for _ in range(draw(st.integers(1, 4))):
        x0, x1 = sorted(draw(st.tuples(*[st.floats(0, width)] * 2)))
        y0, y1 = sorted(draw(st.tuples(*[st.floats(0, height)] * 2)))
        label = draw(st.text(st.characters(categories=("L", "N", "Zs")), max_size=12)).strip()
        boxes.append((label, (x0, y0, x1, y1)))
    return width, height, boxes


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("convention", CONVENTIONS)
@settings(max_examples=12, deadline=None)
@given(picture=pictures())
def test_boxes_come_back_within_one_unit(convention: str, rule: str, picture: Any) -> None:
    made, forward = RULES[rule]
    width, height, boxes = picture
    seen = frame(made, width, height)
    style, written = CONVENTIONS[convention], []
    units = [(seen.width, seen.height)] * 2
    if style.grounding.scale:
        units = [(style.grounding.scale,) * 2] * 2
    expected = []
    for label, (x0, y0, x1, y1) in boxes:
        (left, top, wide, high), (right, bottom, *_) = (
            forward(x, y, width, height, SIDE) for x, y in ((x0, y0), (x1, y1))
        )
        assert (wide, high) == (seen.width, seen.height)
        edges = left, top, right, bottom
        # One unit of the convention, in pixels of the picture.
        unit = (seen.width / units[0][0] / seen.wide, seen.height / units[0][1] / seen.high)
        if min(edges) < 0 or max(edges) > 1 or x1 - x0 < 2 * unit[0] or y1 - y0 < 2 * unit[1]:
            continue  # outside of what the model sees, or thinner than it can say
        written.append((label, edges))
        expected.append((label, (x0, y0, x1, y1), unit))
    found, points = find(style.write(written, seen.width, seen.height), style.grounding, seen)
    assert not points and len(found) == len(expected)
    for box, (label, edges, unit) in zip(found, expected, strict=True):
        off = np.abs(np.subtract((box.x0, box.y0, box.x1, box.y1), edges))
        assert (off <= np.array([*unit, *unit]) * (1 + 1e-9)).all(), (box, edges)
        assert box.label == ("" if convention == "loc 64" else label)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [(300, 200), (121, 347)])
def test_what_is_drawn_on_the_picture_is_found_in_the_view(rule: str, size: tuple[int, int]) -> None:
    """A white rectangle, through the real preprocessing: its edges in the view are its edges in the picture."""
    width, height = size
    edges = (width * 0.4, height * 0.45, width * 0.6, height * 0.65)
    image = np.zeros((height, width, 3), np.uint8)
    x0, y0, x1, y1 = map(round, edges)
    image[y0:y1, x0:x1] = 255
    spec = picture_spec(RULES[rule][0])
    views, seen = plan(width, height, spec), frame(RULES[rule][0], width, height)
    pixels = next(
        p for view, p in zip(views, preprocess(Image.fromarray(image), spec), strict=True) if view.place is None
    )
    assert pixels.shape == (seen.height, seen.width, 3)
    white = pixels[:, :, 0] > 127
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    answer = json.dumps({"bbox_2d": [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]})
    ((box,), _) = find(answer, Grounding("json"), seen)
    off = np.abs(np.subtract((box.x0, box.y0, box.x1, box.y1), (x0, y0, x1, y1)))
    assert (off <= 0.51 * np.array([1 / seen.wide, 1 / seen.high] * 2) + 1e-6).all(), (box, edges)


UNIT = Frame(1000, 1000, 1.0, 1.0, 0.0, 0.0, (1000, 1000))
TAGGED = CONVENTIONS["tagged"].grounding
PAIRS = CONVENTIONS["pairs"].grounding


def test_points() -> None:
    assert find('{"point_2d": [10, 20], "label": "a"}', Grounding("json"), UNIT) == ((), (Point("a", 10, 20),))
    assert find('{"point": [10, 20]}', Grounding("json", 1000, y_first=True), UNIT)[1] == (Point("", 20, 10),)
    assert find("<|box_start|>(10,20)<|box_end|>", PAIRS, UNIT)[1] == (Point("", 10, 20),)
    assert find("<loc_3><loc_7> x", Grounding("tokens", 10, open="<loc_", close=">"), UNIT)[1] == (
        Point("x", 300, 700),
    )
    assert find('{"point_2d": [1001, 20]}', Grounding("json"), UNIT) == ((), ())


def test_labels_behind_tokens_of_other_kinds() -> None:
    """PaliGemma's masks stand between a box and its label (big_vision, paligemma_parse.py's example, shortened)."""
    text = (
        "<loc0000><loc0000><loc0930><loc1012> <seg114><seg074> wall ; <loc0722><loc0047><loc0895><loc0378> <seg068> car"
    )
    found = find(text, CONVENTIONS["loc 1024"].grounding, Frame(1024, 1024, 1.0, 1.0, 0.0, 0.0, (1024, 1024)))[0]
    assert found == (Box("wall", 0, 0, 1012, 930), Box("car", 47, 722, 378, 895))


def test_what_is_read_on_a_page_stands_beside_its_box() -> None:
    """dots.ocr's answers: text has braces and quotes of its own."""
    layout = [
        {"bbox": [1, 2, 3, 4], "category": "Formula", "text": r"$$\frac{a}{b} = \{x : y\}$$"},
        {"bbox": [5, 6, 7, 8], "category": "Text", "text": 'a "brace" } ' + "and more " * 1000},
        {"bbox": [2, 2, 9, 9], "category": "Picture"},
    ]
    found = (Box("Formula", 1, 2, 3, 4), Box("Text", 5, 6, 7, 8), Box("Picture", 2, 2, 9, 9))
    assert find(json.dumps(layout), Grounding("json"), UNIT) == (found, ())
    before = 'a {"stray quote\n' + json.dumps(layout, indent=1)
    assert find(before, Grounding("json"), UNIT) == (found, ())


def test_labels_hold_for_what_follows_them() -> None:
    text = "<ref>cat</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box> and <ref>dog</ref> <box>[[1,1,9,9]]</box>"
    text += ", <box>[2,2,3,3]</box> then <box>[[4,4,5,5]]</box>"
    assert [box.label for box in find(text, TAGGED, UNIT)[0]] == ["cat", "cat", "dog", "dog", ""]


def test_an_answer_that_is_cut_off_keeps_its_first_boxes() -> None:
    whole = _relative([("a", (0.1, 0.1, 0.2, 0.2)), ("b", (0.3, 0.3, 0.4, 0.4))], 1, 1)
    boxes = find("Here:\n```json\n" + whole[:-12], Grounding("json", 1000), UNIT)[0]
    assert boxes == (Box("a", 100.0, 100.0, 200.0, 200.0),)
    assert not find("<ref>a</ref><box>[[1, 2, 3, 4]]", TAGGED, UNIT)[0]


NONSENSE = (
    '{"bbox_2d": [1, 2, 3]}', '{"bbox_2d": [NaN, 1, 2, 3]}', '{"bbox_2d": [1e999, 1, 2, 3]}', '{"bbox_2d": "1,2,3,4"}',
    '{"bbox_2d": [true, 1, 2, 3]}', '{"bbox_2d": [5, 5, 1, 1]}', '{"bbox_2d": [2000, 2000, 3000, 3000]}',
    '{"bbox_2d": [' + "9" * 400 + ", 1, 2, 3]}", '{"bbox_2d": [1, 2, 3, 4], "bbox_2d": [1, 2, 3, 4]}', "{" * 5000,
    "<box>[[1, 2, 3]]</box>", "<box></box>", "<box>[[1,2,3,4", "<ref><ref></ref>", "<box>[[nan, inf, 3, 4]]</box>",
    "<loc_99999999><loc_1><loc_2><loc_3>", "<loc_5><loc_5><loc_5><loc_5>", "<loc_1><loc_2><loc_3>", "",
)  # fmt: skip


@pytest.mark.parametrize("text", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_gives_no_box(text: str) -> None:
    for convention in CONVENTIONS.values():
        grounding = convention.grounding
        if "loc_5" in text and grounding.middle:
            continue
        assert find(text, grounding, UNIT) == ((), ())


def test_numbers_beyond_the_frame_are_cut_at_its_edge() -> None:
    padded = frame(Pad(SIDE, (0, 0, 0)), 200, 100)  # the picture is rows 24 to 72 of 96
    ((box,), _) = find('{"bbox_2d": [-5, 0, 5000, 96], "label": 7}', Grounding("json"), padded)
    assert box == Box("", 0.0, 0.0, 200.0, 100.0)
    assert find('{"bbox_2d": [0, 0, 96, 24]}', Grounding("json"), padded)[0] == ()  # all of it is padding


_PIECES = st.sampled_from(
    ["{", "}", "[", "]", ",", '"bbox_2d":', '"label":', '"x"', "1", "2.5", "-3", "1e9", "NaN", "<box>", "</box>",
     "<ref>", "</ref>", "<loc_", "<loc", ">", "9" * 30, " ", "\n", ";", "(", ")", "\x1b", "é",
     "<|box_start|>", "<|box_end|>"]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(_PIECES, max_size=60).map("".join) | st.text(max_size=60), st.sampled_from(list(CONVENTIONS)))
@example("<loc_" + "1" * 8 + ">", "loc 64")
def test_no_answer_breaks_it(text: str, convention: str) -> None:
    boxes, points = find(text, CONVENTIONS[convention].grounding, UNIT)
    for box in boxes:
        assert 0 <= box.x0 < box.x1 <= 1000 and 0 <= box.y0 < box.y1 <= 1000
    assert all(math.isfinite(p.x) and math.isfinite(p.y) for p in points)


FLOODS = (
    '{"bbox_2d": [1, 2, 3, 4], "label": "x"}', "<ref>x</ref><box>[[1, 2, 3, 4]]</box>", "[[1,2,3,4],[",
    "<loc_1><loc_2><loc_3><loc_4>", "<loc_1>", "{}", "{", '{"', '{\\"', '{""', '{"\\', '{"\n',
    "<box>", "<ref>", "1", "[", "<box>[",
)  # fmt: skip


@pytest.mark.parametrize("piece", FLOODS)
def test_a_flood_is_bounded(piece: str) -> None:
    """A million characters, in time that grows as they do."""
    text = piece * (1_000_000 // len(piece))
    for convention in CONVENTIONS.values():
        start = time.perf_counter()
        boxes, points = find(text, convention.grounding, UNIT)
        assert len(boxes) + len(points) <= limits.BOXES
        assert time.perf_counter() - start < 5
    assert all(len(label) <= limits.LABEL for label in (box.label for box in boxes))


def test_conventions_that_are_none_are_refused() -> None:
    for wrong in ({"form": "words"}, {"form": "tagged"}, {"form": "json", "scale": -1},
                  {"form": "tokens", "open": "<", "close": ">", "label_open": "x"}):  # fmt: skip
        with pytest.raises(EdgeVLMError, match="grounding"):
            Grounding(**wrong)  # type: ignore[arg-type]
