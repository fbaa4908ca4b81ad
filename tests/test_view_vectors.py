"""tests/vectors/views.json and rgb_raw.json are what the processors and the files say."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

VECTORS = Path(__file__).parent / "vectors"
needs_pillow_13 = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="the oracle is Pillow 13; older ones resize rows first"
)


@pytest.fixture(scope="module")
def make() -> ModuleType:
    """tests/vectors/make_views.py as a module."""
    spec = importlib.util.spec_from_file_location("vectors_make_views", VECTORS / "make_views.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def views() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((VECTORS / "views.json").read_text("utf-8"))
    return loaded


def pixel(x: int, y: int, c: int) -> int:
    """The README's formula in plain integers."""
    smooth = (x * x * (1 + c) + y * y * (3 - c) + 64 * x + 32 * y) % 2**32 >> 6
    rough = ((x * 73856093 % 2**32) ^ (y * 19349663 % 2**32) ^ (c * 83492791 % 2**32)) >> 27
    return (smooth + rough) % 256


def test_the_picture_is_the_readmes(views: dict[str, Any]) -> None:
    for width, height, digest in views["pictures"]:
        if width * height <= 20000:
            data = bytes(pixel(x, y, c) for y in range(height) for x in range(width) for c in range(3))
            assert hashlib.sha256(data).hexdigest() == digest, (width, height)


def test_the_picture_is_the_readmes_far_from_the_corner(make: ModuleType, views: dict[str, Any]) -> None:
    rgb = make.picture(1601, 1499)
    random = np.random.default_rng(0)
    for x, y, c in zip(
        random.integers(0, 1601, 500), random.integers(0, 1499, 500), random.integers(0, 3, 500), strict=True
    ):
        assert rgb[y, x, c] == pixel(int(x), int(y), int(c))
    for width, height, digest in views["pictures"]:
        assert hashlib.sha256(rgb[:height, :width].tobytes()).hexdigest() == digest or max(width, height) > 1499


@needs_pillow_13
def test_small_cases_are_what_the_processors_say(make: ModuleType, views: dict[str, Any]) -> None:
    """All small specs, and the published ones on pictures that are quickly processed."""
    assert [[case["spec"], case["width"], case["height"]] for case in views["cases"]] == [
        [name, *size] for name in make.SPECS for size in make.SIZES
    ]
    for case in views["cases"]:
        small = case["spec"].endswith("small") and case["width"] * case["height"] < 400 * 400
        if small or (case["width"], case["height"]) in ((61, 43), (449, 448)):
            assert json.loads(json.dumps(make.case(case["spec"], case["width"], case["height"]))) == case


@needs_pillow_13
def test_what_the_gate_replays_is_what_the_processors_say(make: ModuleType) -> None:
    shipped = Path(__file__).parents[1] / "edgevlm" / "assets" / "views.json"
    assert shipped.read_text("utf-8") == make.to_json(make.witness())


@needs_pillow_13
def test_stretched_pictures_are_pillows(make: ModuleType, views: dict[str, Any]) -> None:
    """The smallest pictures too, whose channel order transformers has to guess."""
    for case in views["cases"]:
        if case["spec"] == "siglip_small":
            image = Image.fromarray(make.picture(case["width"], case["height"]))
            data = image.resize((48, 48), Image.Resampling.BICUBIC).tobytes()
            assert hashlib.sha256(data).hexdigest() == case["sha256"], (case["width"], case["height"])


def test_raw_pictures_are_the_files(make: ModuleType) -> None:
    assert json.loads((VECTORS / "rgb_raw.json").read_text("utf-8")) == make.rgb_raw(VECTORS / "rgb")
    known = json.loads((VECTORS / "preprocess.json").read_text("utf-8"))["images"]
    raw = {case["file"]: case for case in json.loads((VECTORS / "rgb_raw.json").read_text("utf-8"))["cases"]}
    assert {name + ".png": image["sha256"] for name, image in known.items()} == {
        name: case["sha256"] for name, case in raw.items()
    }
