"""Views against what the families' own PIL image processors made: recorded vectors, and random sizes live."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import heavy_but
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import nanovlm

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs import preprocess as pre
from edgevlm.inputs.rules import (
    CoveringTiles,
    Crop,
    Filled,
    Fit,
    Native,
    NativeGrown,
    NativeScaled,
    Pad,
    RatioTiles,
    Rule,
    Stretch,
    TilesThenWhole,
    WholeThenTiles,
)
from edgevlm.inputs.spec import ImageSpec
from edgevlm.inputs.views import CropTo, PadTo, ResizeTo, View, cut
from edgevlm.io.records import from_dict, to_dict

VECTORS = Path(__file__).parents[1] / "vectors"
_module_spec = importlib.util.spec_from_file_location("make_views", VECTORS / "make_views.py")
assert _module_spec and _module_spec.loader
make = importlib.util.module_from_spec(_module_spec)
_module_spec.loader.exec_module(make)
RECORDED = json.loads((VECTORS / "views.json").read_text("utf-8"))

CLIP_COLOR, GREY = (122, 116, 104), (127, 127, 127)
# What the processors' settings in views.json are as rules, and the pixels per side of an image token.
RULES: dict[str, tuple[Rule, int]] = {
    "clip_crop": (Crop(336, 336), 14),
    "clip_crop_small": (Crop(48, 48), 8),
    "llava_pad": (Pad(336, CLIP_COLOR), 14),
    "llava_pad_small": (Pad(48, CLIP_COLOR), 8),
    "internvl": (RatioTiles(448, 1, 12, thumbnail=True), 28),
    "internvl_small": (RatioTiles(48, 1, 6, thumbnail=True), 16),
    "qwen2_5_vl": (Native(28, 56 * 56, 28 * 28 * 1280), 28),
    "qwen3_vl": (Native(32, 65536, 16777216), 32),
    "qwen_small": (Native(16, 4 * 256, 40 * 256), 16),
    "paddleocr_vl": (NativeGrown(28, 384 * 384, 1536 * 1536), 28),
    "paddleocr_vl_small": (NativeGrown(16, 4 * 256, 40 * 256), 16),
    "gemma4": (Filled(48, 280), 48),
    "gemma4_small": (Filled(12, 70), 12),
    "glm4v": (NativeScaled(28, 112 * 112 // 2, 28 * 28 * 15000 // 2), 28),
    "glm4v_small": (NativeScaled(16, 4 * 256, 40 * 256), 16),
    "deepseek_vl": (Fit(384, 14, GREY), 16),
    "deepseek_vl_small": (Fit(48, 14, CLIP_COLOR), 8),
    "idefics3": (TilesThenWhole(364, 1456, 4096, 2, split=True), 28),
    "idefics3_small": (TilesThenWhole(48, 192, 4096, 2, split=True), 16),
    "ovis2": (CoveringTiles(448, 12), 28),
    "ovis2_small": (CoveringTiles(48, 6), 16),
    "siglip": (Stretch(384), 14),
    "siglip_small": (Stretch(48), 8),
}


def spec_of(rule: Rule, token_pixels: int = 8) -> ImageSpec:
    resample = "lanczos" if isinstance(rule, TilesThenWhole) else "bicubic"
    return ImageSpec(2, rule, resample, (255, 255, 255), 1 / 255, (0.5,) * 3, (0.5,) * 3, token_pixels)


def check(case: dict[str, Any]) -> None:
    spec = spec_of(*RULES[case["spec"]])
    width, height = case["width"], case["height"]
    if "refused" in case:
        with pytest.raises(EdgeVLMError, match=f"A picture of {width} x {height} is more than 200 times as long"):
            pre.plan(width, height, spec)
        return
    planned = pre.plan(width, height, spec)
    assert len(planned) == case["views"] and {view.size for view in planned} == {tuple(case["size"])}
    assert sum(math.prod(spec.token_grid(view)) for view in planned) == case["tokens"]
    if "tiles" in case and len(planned) > 1:
        assert [view.place for view in planned if view.place] == [
            (row, col) for row in range(1, case["tiles"][0] + 1) for col in range(1, case["tiles"][1] + 1)
        ]
    whole_first = isinstance(spec.rule, CoveringTiles)
    assert planned[0 if whole_first else -1].place is None
    views = pre.preprocess(Image.fromarray(make.picture(width, height)), spec)
    assert [(view.shape[1], view.shape[0]) for view in views] == [view.size for view in planned]
    assert hashlib.sha256(b"".join(view.tobytes() for view in views)).hexdigest() == case["sha256"]


@pytest.mark.parametrize("name", heavy_but([name for name in RULES if name.endswith("small")], RULES))
def test_recorded_views(name: str) -> None:
    cases = [case for case in RECORDED["cases"] if case["spec"] == name]
    assert len(cases) == len(make.SIZES)
    for case in cases:
        check(case)


SIDE = st.one_of(st.integers(1, 60), st.integers(1, 700))
LIVE = [name for name in RULES if name.endswith("small")]
if sys.version_info >= (3, 12):
    LIVE.remove("ovis2_small")  # its processor adds with sum(), which chooses another grid for one size in sixty


@given(st.sampled_from(LIVE), SIDE, SIDE)
@settings(max_examples=150, deadline=None)
def test_views_equal_the_processors(name: str, width: int, height: int) -> None:
    check(make.case(name, width, height))


@pytest.mark.parametrize("budget", range(1, 15))
def test_a_budget_is_max_patches_of_the_processor(budget: int) -> None:
    """RatioTiles under a budget makes what GotOcr2ImageProcessor does with so many patches, thumbnail included."""
    processor = make.PROCESSORS["GotOcr2ImageProcessor"]
    settings_ = make.tiles(48, max(1, min(6, budget - 1))) | {"do_rescale": False, "do_normalize": False}
    for width, height in ((1, 97), (61, 43), (101, 103), (300, 200), (640, 480)):
        rgb = make.picture(width, height)
        expected = np.stack(processor(**settings_)(Image.fromarray(rgb))["pixel_values"]).transpose(0, 2, 3, 1)
        views = pre.preprocess(rgb, spec_of(RULES["internvl_small"][0]), max_tiles=budget)
        assert len(views) <= budget
        np.testing.assert_array_equal(np.stack(views), expected)


@given(st.sampled_from(sorted(RULES)), SIDE, SIDE, st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_no_rule_goes_beyond_a_budget(name: str, width: int, height: int, budget: int) -> None:
    rule = RULES[name][0]
    try:
        views = rule.views(width, height, budget)
    except EdgeVLMError:
        return
    assert 1 <= len(views) <= budget
    if len(rule.views(width, height)) <= budget:
        assert views == rule.views(width, height)


def test_nanovlms_tiles_are_within_a_level() -> None:
    """nanoVLM makes the whole picture in floating point: two roundings of half a level."""
    spec = spec_of(WholeThenTiles(nanovlm.TILE, nanovlm.MAX_EDGE, False, "bilinear"), 16)
    for width, height in make.SIZES[:28]:
        rgb = make.picture(width, height)
        expected, (rows, cols) = nanovlm.split(Image.fromarray(rgb))
        views = pre.preprocess(rgb, spec)
        places = [(row, col) for row in range(1, rows + 1) for col in range(1, cols + 1)]
        assert [view.place for view in pre.plan(width, height, spec)] == ([None, *places] if len(views) > 1 else [None])
        made = np.stack(views).transpose(0, 3, 1, 2)
        assert np.abs(made - expected.numpy() * 255).max() <= 1.0001
        np.testing.assert_array_equal(made[1:], np.rint(expected.numpy()[1:] * 255))


def test_a_canvas_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    run = ResizeTo.run
    monkeypatch.setattr(ResizeTo, "run", lambda self, *args: seen.append((self.width, self.height)) or run(self, *args))
    pre.preprocess(make.picture(200, 150), spec_of(RULES["idefics3_small"][0]))
    assert seen == [(192, 144), (192, 144), (48, 48)]  # the longest edge, the canvas, the whole picture


def test_steps_one_by_one() -> None:
    rgb = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    view = View((PadTo(5, 4, 1, 2, (9, 8, 7)), CropTo(1, 1, 3, 3)))
    (made,) = cut(Image.fromarray(rgb), [view], "bicubic")
    np.testing.assert_array_equal(made[1:], rgb)
    assert view.size == (3, 3) and made[0].tolist() == [[9, 8, 7]] * 3


@pytest.mark.parametrize(("width", "height"), [(1, 100_000), (89_000_000, 1)])
def test_a_resize_is_bounded(width: int, height: int) -> None:
    """The short edge to 336 would make gigabytes of a picture that is one pixel wide."""
    views = Crop(336, 336).views(width, height)
    with pytest.raises(EdgeVLMError, match=r"at most 89\.5 million are made: cut it into less elongated pieces"):
        cut(Image.new("RGB", (width, height)), views, "bicubic")


def test_a_canvas_to_pad_is_bounded() -> None:
    with pytest.raises(EdgeVLMError, match=r"would become 30000 x 30000 pixels, at most 89\.5 million"):
        cut(Image.new("RGB", (1, 30_000)), Pad(336, (0, 0, 0)).views(1, 30_000), "bicubic")


@pytest.mark.parametrize("rule", [TilesThenWhole(1, 16384, 16384, 1, True), WholeThenTiles(1, 16384, True, "lanczos")])
def test_tiles_are_bounded(rule: TilesThenWhole | WholeThenTiles) -> None:
    with pytest.raises(EdgeVLMError, match="tiles of 1 x 1 pixels, at most 1024 are made"):
        rule.views(640, 480)
    assert len(rule.views(640, 480, 5)) <= 5


def test_image_tokens_are_bounded() -> None:
    spec = spec_of(Stretch(9000), token_pixels=1)
    with pytest.raises(EdgeVLMError, match="would take 81000000 image tokens"):
        spec.view_tokens(spec.rule.views(1, 1), (1, 1))


def test_a_unit_of_nothing_is_refused() -> None:
    with pytest.raises(EdgeVLMError, match="unit = 0, expected 1 to 16384"):
        Filled(0, 280)


@pytest.mark.parametrize("name", RULES)
def test_rules_round_trip(name: str) -> None:
    spec = spec_of(*RULES[name])
    assert from_dict(ImageSpec, json.loads(json.dumps(to_dict(spec))), "preprocess.json") == spec
