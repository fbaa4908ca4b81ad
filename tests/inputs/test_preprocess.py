"""The arithmetic of preprocessing against Pillow, transformers' PIL processors and the golden vectors."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import struct
import warnings
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs import preprocess as pre
from edgevlm.inputs import resample
from edgevlm.inputs.decode import open_image
from edgevlm.inputs.spec import ImageSpec
from edgevlm.inputs.views import ResizeTo, View
from edgevlm.io.records import from_dict, to_dict
from edgevlm.types import U8

VECTORS = Path(__file__).parents[1] / "vectors"
PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13
needs_pillow_13 = pytest.mark.skipif(not PILLOW_13, reason="the oracle is Pillow 13; older ones resize rows first")


def _load_make() -> ModuleType:
    module_spec = importlib.util.spec_from_file_location("vectors_make", VECTORS / "make.py")
    assert module_spec and module_spec.loader
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hf() -> ModuleType:
    """The oracle: transformers' PIL processors, as tests/vectors/make.py drives them."""
    return _load_make()


def vectors(name: str) -> dict[str, Any]:
    return json.loads((VECTORS / name).read_text("utf-8"))


def image_spec(values: dict[str, Any], **changes: Any) -> ImageSpec:
    return from_dict(ImageSpec, values | changes, "spec")


def grid_of(views: list[View]) -> tuple[int, int]:
    """Rows and columns of the tiles; 0 x 0 for the whole picture alone."""
    return max((view.place for view in views if view.place), default=(0, 0))


def placed(made: pre.Prepared) -> tuple[int, int]:
    return max((view.place for view in made.tokens if view.place), default=(0, 0))


def resizes(views: list[View]) -> list[list[int]]:
    """Width and height of each resize, up to the tiles."""
    return [[step.width, step.height] for step in views[0].steps if isinstance(step, ResizeTo)]


SPECS = vectors("preprocess.json")["specs"]
SMALL = image_spec(SPECS["small"])


def rgb_vector(name: str) -> U8:
    return np.asarray(Image.open(VECTORS / vectors("preprocess.json")["images"][name]["rgb"]))


def noise(width: int, height: int, seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# ---- the resampler -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", vectors("resample.json")["cases"], ids=lambda c: f"{c['resample']}-{c['to']}")
def test_resampler_vectors(case: dict[str, Any]) -> None:
    (width, height), to = case["from"], tuple(case["to"])
    rgb = np.frombuffer(base64.b64decode(case["input"]), np.uint8).reshape(height, width, 3)
    expected = np.frombuffer(base64.b64decode(case["output"]), np.uint8).reshape(to[1], to[0], 3)
    np.testing.assert_array_equal(resample.resize(rgb, *to, case["resample"]), expected)
    made = resample.resize_image(Image.fromarray(rgb), to, case["resample"])
    np.testing.assert_array_equal(np.asarray(made), expected)


SIDE = st.integers(1, 70)


@needs_pillow_13
@given(
    SIDE,
    SIDE,
    SIDE,
    SIDE,
    st.sampled_from(sorted(resample.KERNELS)),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_resampler_equals_pillow(
    width: int, height: int, new_width: int, new_height: int, name: str, seed: int, extremes: bool
) -> None:
    rgb = noise(width, height, seed)
    if extremes:  # overshoot on both sides
        rgb = np.where(rgb > 127, 255, 0).astype(np.uint8)
    image = Image.fromarray(rgb)
    expected = np.asarray(image.resize((new_width, new_height), Image.Resampling[name.upper()]))
    np.testing.assert_array_equal(resample.resize(rgb, new_width, new_height, name), expected)
    np.testing.assert_array_equal(np.asarray(resample.resize_image(image, (new_width, new_height), name)), expected)


def test_resampler_refuses() -> None:
    with pytest.raises(EdgeVLMError, match=r"filter 'nearest' is unknown: use bilinear, bicubic, lanczos\."):
        resample.resize(noise(3, 3), 2, 2, "nearest")
    with pytest.raises(EdgeVLMError, match="sizes start at 1"):
        resample.resize(noise(3, 3), 0, 2, "bilinear")


# ---- tiles -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    vectors("preprocess.json")["cases"],
    ids=lambda c: f"{c['image']}-{c['spec']}-{c['max_tiles']}",
)
def test_preprocess_vectors(case: dict[str, Any]) -> None:
    spec, rgb = image_spec(SPECS[case["spec"]]), rgb_vector(case["image"])
    planned = pre.plan(rgb.shape[1], rgb.shape[0], spec, max_tiles=case["max_tiles"])
    assert resizes(planned) == case["resizes"]
    assert list(grid_of(planned)) == case["grid"] and len(planned) == case["tiles"]
    tiles = np.stack(pre.preprocess(rgb, spec, max_tiles=case["max_tiles"]))
    assert hashlib.sha256(tiles.tobytes()).hexdigest() == case["uint8_sha256"]
    made = pre.prepare(Image.fromarray(rgb), spec, max_tiles=case["max_tiles"])
    pixels = pre.normalize_all(made.views, spec)
    assert pixels.dtype == np.float32
    assert [view.place for view in made.tokens] == [view.place for view in planned]
    assert all((view.rows, view.cols) == (spec.rule.side // 4,) * 2 for view in made.tokens)
    assert pre.normalize(tiles[0], spec).tobytes() == pixels[0].tobytes()
    assert hashlib.sha256(pixels.astype("<f4").tobytes()).hexdigest() == case["float32_sha256"]
    for t, c, y, x, value in case["values"]:
        assert float(pixels[t, c, y, x]) == value


def test_plan_vectors() -> None:
    table = vectors("plan.json")
    specs = {name: image_spec(values) for name, values in table["specs"].items()}
    for name, width, height, budget, sizes, grid in table["cases"]:
        planned = pre.plan(width, height, specs[name], max_tiles=budget)
        assert (resizes(planned), list(grid_of(planned))) == (sizes, grid), (name, width, height, budget)
        assert budget is None or len(planned) <= budget


@pytest.mark.heavy
@needs_pillow_13
def test_vectors_are_what_the_oracles_say(hf: ModuleType, tmp_path: Path) -> None:
    hf.write_goldens(VECTORS / "images", VECTORS / "tokenizer.json", tmp_path)
    assert hf.changed(tmp_path, VECTORS) == []


@pytest.mark.heavy
def test_photographs_at_full_size(hf: ModuleType) -> None:
    from skimage import data
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    spec = image_spec(SPECS["smolvlm"])
    idefics = Idefics3ImageProcessorPil(size={"longest_edge": 1456}, max_image_size={"longest_edge": 364})
    for name in ("astronaut", "coffee", "rocket"):
        rgb = getattr(data, name)()
        for split, budget in ((True, None), (False, 1)):
            expected, grid = hf.hf_tiles(rgb, SPECS["smolvlm"], do_image_splitting=split)
            made = pre.prepare(rgb, spec, max_tiles=budget)
            assert placed(made) == grid
            np.testing.assert_array_equal(pre.normalize_all(made.views, spec), expected)
    out = idefics(Image.fromarray(rgb), return_row_col_info=True, return_tensors="np")
    spec = image_spec(SPECS["idefics3"])
    made = pre.prepare(rgb, spec)
    assert placed(made) == (out["rows"][0][0], out["cols"][0][0])
    np.testing.assert_array_equal(pre.normalize_all(made.views, spec), out["pixel_values"][0])


def test_beyond_the_largest_edge(hf: ModuleType) -> None:
    values = hf.spec(1024, 6000)
    rgb = noise(5000, 25)
    expected, grid = hf.hf_tiles(rgb, values)
    made = pre.prepare(rgb, image_spec(values))
    assert placed(made) == grid == (1, 4)
    np.testing.assert_array_equal(pre.normalize_all(made.views, image_spec(values)), expected)


PICTURE_SIDE = st.one_of(st.integers(1, 40), st.integers(1, 400))


@given(
    PICTURE_SIDE,
    PICTURE_SIDE,
    st.sampled_from(["small", "whole", "uneven", "as_is"]),
    st.one_of(st.none(), st.integers(1, 40)),
)
@settings(max_examples=80, deadline=None)
def test_preprocess_equals_transformers(width: int, height: int, name: str, budget: int | None) -> None:
    hf = _MAKE
    rgb = noise(width, height, width * 1000 + height)
    options = hf.hf_options((width, height), SPECS[name], budget)
    expected, grid = hf.hf_tiles(rgb, SPECS[name], **options)
    made = pre.prepare(rgb, image_spec(SPECS[name]), max_tiles=budget)
    assert placed(made) == grid
    assert len(made.views) == grid[0] * grid[1] + 1 and (budget is None or len(made.views) <= budget)
    np.testing.assert_array_equal(pre.normalize_all(made.views, image_spec(SPECS[name])), expected)


_MAKE = _load_make()


def test_budget_of_one_is_the_unsplit_mode() -> None:
    rgb = noise(90, 70)
    unsplit = SPECS["small"]["rule"] | {"split": False}
    whole = pre.prepare(rgb, image_spec(SPECS["small"], rule=unsplit))
    one = pre.prepare(rgb, SMALL, max_tiles=1)
    assert placed(whole) == placed(one) == (0, 0)
    np.testing.assert_array_equal(whole.views, one.views)
    two = pre.prepare(rgb, SMALL, max_tiles=2)  # no grid has one tile: the same
    np.testing.assert_array_equal(two.views, one.views)


def test_preprocess_leaves_its_input_alone() -> None:
    rgb = noise(32, 32)
    before = rgb.copy()
    pre.preprocess(rgb, SMALL)
    np.testing.assert_array_equal(rgb, before)


@pytest.mark.parametrize("budget", [0, -3])
def test_refuses_an_empty_budget(budget: int) -> None:
    with pytest.raises(EdgeVLMError, match=f"tile budget is {budget}: it should be 1"):
        pre.preprocess(noise(4, 4), SMALL, max_tiles=budget)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), "u1"),
    ],
)
def test_refuses_what_is_not_decoded_rgb(array: Any) -> None:
    with pytest.raises(EdgeVLMError, match="open it with open_image"):
        pre.preprocess(array, SMALL)
    with pytest.raises(EdgeVLMError, match="found mode L: open it with open_image"):
        pre.preprocess(Image.new("L", (4, 4)), SMALL)


# ---- decoding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((VECTORS / "images").iterdir()), ids=lambda p: p.name)
def test_decode_vectors(path: Path) -> None:
    golden = vectors("preprocess.json")["images"][path.name]
    for source in (path, str(path), path.read_bytes()):
        rgb = open_image(source)
        assert rgb.dtype == np.uint8 and rgb.shape == (golden["height"], golden["width"], 3)
        assert hashlib.sha256(rgb.tobytes()).hexdigest() == golden["sha256"]
    with Image.open(path) as image:
        np.testing.assert_array_equal(open_image(image), rgb)
    np.testing.assert_array_equal(rgb, rgb_vector(path.name))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I", "F"])
def test_decode_modes_as_transformers(mode: str) -> None:
    from transformers.image_transforms import convert_to_rgb

    rgba = np.dstack([noise(19, 11), noise(19, 11, 1)[..., 0]])
    image = Image.fromarray(rgba)
    if mode in ("I", "F"):
        image = Image.fromarray(noise(19, 11)[..., 0].astype(np.int32) * 3 - 100).convert(mode)
    elif mode in ("PA", "HSV", "YCbCr", "CMYK"):
        image = image.convert("RGB").convert("P" if mode == "PA" else mode).convert(mode)
    else:
        image = image.convert(mode)
    before = image.copy()
    np.testing.assert_array_equal(open_image(image), convert_to_rgb(image, return_numpy=True))
    assert image == before


@pytest.mark.parametrize("format_", ["AVIF", "JPEG2000", "ICO", "PPM", "TIFF"])
def test_decode_other_formats(format_: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(noise(32, 32)).save(stream, format_)
    with Image.open(io.BytesIO(stream.getvalue())) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(open_image(stream.getvalue()), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_with_alpha(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    rgba = np.dstack([noise(13, 7), noise(13, 7, 1)[..., 0]])
    Image.fromarray(rgba).save(stream, "PNG", exif=exif)
    with Image.open(io.BytesIO(stream.getvalue())) as image:
        upright = ImageOps.exif_transpose(image)
        base = Image.new("RGBA", upright.size, (10, 200, 30, 255))
        expected = np.asarray(Image.alpha_composite(base, upright).convert("RGB"))
    np.testing.assert_array_equal(open_image(stream.getvalue(), (10, 200, 30)), expected)


def test_damaged_exif_is_ignored() -> None:
    stream = io.BytesIO()
    Image.fromarray(noise(8, 8)).save(stream, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 9)
    assert open_image(stream.getvalue()).shape == (8, 8, 3)


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    ihdr = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + ihdr + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def whole(name: str) -> bytes:
    return (VECTORS / "images" / name).read_bytes()


BAD_BYTES = {
    "empty": (b"", "is not a picture"),
    "text": (b"hello, this is no picture\n" * 10, "is not a picture that can be opened: use JPEG, PNG"),
    "pickle": (b"\x80\x04K\x01.", "is not a picture"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is not a picture"),
    "truncated jpeg": (whole("photo_chelsea.jpg")[:3000], "is damaged or incomplete and cannot be decoded"),
    "truncated png": (whole("prime.png")[:4000], "is damaged or incomplete"),
    "truncated gif": (whole("animated.gif")[:500], "is damaged or incomplete"),
    "truncated webp": (whole("lossy.webp")[:400], "picture|damaged"),
    "truncated tiff": (whole("tiff_lzw.tiff")[:900], "picture|damaged"),
    "bomb": (png_header(50_000, 50_000), "pixels, at most 89.5 million are read: scale it down first"),
    "large": (png_header(10_000, 9_000), "10000 x 9000 pixels, at most 89.5 million"),
    "no pixels": (png_header(0, 10), "is not a picture|has no pixels"),
}


@pytest.mark.parametrize("name", BAD_BYTES)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_refuses_bad_bytes(name: str, tmp_path: Path) -> None:
    data, sentence = BAD_BYTES[name]
    path = tmp_path / "bad.jpg"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(EdgeVLMError, match=sentence) as caught:
            open_image(source)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert str(path) in str(caught.value)


def test_a_bomb_is_refused_whatever_the_warning_filter() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(EdgeVLMError, match="scale it down first"):
            open_image(png_header(10_000, 9_000))


@given(st.sampled_from(["prime.png", "exif_3.jpg", "animated.gif", "lossless.webp", "bitmap.bmp"]), st.data())
@settings(max_examples=120, deadline=None)
def test_damaged_files_give_a_picture_or_a_sentence(name: str, data: st.DataObject) -> None:
    content = bytearray(whole(name))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert open_image(bytes(content)).shape[2] == 3
        except EdgeVLMError as error:
            assert "The image" in str(error)


def test_refuses_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(EdgeVLMError, match=r"no\.jpg' does not exist: check the path \(only local files"):
        open_image(tmp_path / "no.jpg")
    with pytest.raises(EdgeVLMError, match="is a folder: give the path of one picture"):
        open_image(tmp_path)
    with pytest.raises(EdgeVLMError, match=r"cannot be read|does not exist"):
        open_image("a\0b")
    with pytest.raises(EdgeVLMError, match=r"cannot be read|does not exist"):
        open_image("x" * 5000)
    with pytest.raises(EdgeVLMError, match="is not a regular file"):
        open_image("/dev/null")
    with pytest.raises(EdgeVLMError, match=r"has no pixels \(0 x 5\)"):
        open_image(Image.new("RGB", (0, 5)))


# ---- the spec ----------------------------------------------------------------------------------------------


def test_spec_round_trip() -> None:
    assert from_dict(ImageSpec, json.loads(json.dumps(to_dict(SMALL))), "preprocess.json") == SMALL


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 1),
        ("resample", "nearest"),
        ("token_pixels", 0),
        ("token_pixels", None),
        ("tokens", 4),
        ("background", [0, 0, 300]),
        ("std", [1, 0, 1]),
        ("mean", [float("nan"), 0, 0]),
        ("rescale_factor", float("inf")),
    ],
)
def test_spec_refuses(field: str, value: Any) -> None:
    with pytest.raises(EdgeVLMError, match=rf"(image spec has|spec:) .*{field}.* (=|is) .*expected"):
        image_spec(SPECS["small"], **{field: value})


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ({"side": 0}, "side"),
        ({"longest_edge": -1}, "longest_edge"),
        ({"max_edge": 10**9}, "max_edge"),
        ({"short_edge_multiple": 0}, "short_edge_multiple"),
        ({"kind": "stretch", "side": 20000}, "side"),
        ({"kind": "crop", "shortest": 32, "side": 33}, "side"),
        ({"kind": "pad", "side": 32, "color": [0, 0, 256]}, "color"),
        ({"kind": "ratio_tiles", "side": 32, "least": 7, "most": 6, "thumbnail": True}, "least"),
        ({"kind": "ratio_tiles", "side": 32, "least": 1, "most": 10**6, "thumbnail": True}, "most"),
        ({"kind": "native", "unit": 28, "least": 1, "most": 1 << 40}, "most"),
        (
            {"kind": "whole_then_tiles", "side": 8, "longest_edge": 32, "enlarge": True, "whole_resample": "box"},
            "whole_resample",
        ),
    ],
)
def test_rule_refuses(rule: dict[str, Any], field: str) -> None:
    rule = rule if "kind" in rule else SPECS["small"]["rule"] | rule
    with pytest.raises(EdgeVLMError, match=rf"image spec has {field} = .*expected"):
        image_spec(SPECS["small"], rule=rule)


def test_other_schemas_are_refused_in_a_sentence() -> None:
    first = {"version": 1, "strategy": "tiles_then_global", "tile_size": 32}
    with pytest.raises(EdgeVLMError, match="has the unknown field 'strategy': it was written by another version"):
        from_dict(ImageSpec, first, "preprocess.json")
    with pytest.raises(EdgeVLMError, match="rule is of the unknown kind 'mosaic'"):
        image_spec(SPECS["small"], rule={"kind": "mosaic"})
