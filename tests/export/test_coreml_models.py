"""Towers and decoders of several families as CoreML packages, evaluated beside the eager reference."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from cases import heavy_but

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_models import (
    IMAGE,
    LAYOUT,
    PLAIN,
    WIDTH,
    Drawn,
    averaged,
    bottlenecks,
    clip,
    convolved,
    cosine,
    deep,
    features,
    gated,
    gemma,
    intern,
    levels,
    logits,
    picture,
    pooled,
    qwen,
    sheet,
    streaming,
    windowed,
    woven,
)  # fmt: skip

from edgevlm.bundle.files import write_json
from edgevlm.bundle.manifest import Bundle
from edgevlm.bundle.qtensor import QTensor
from edgevlm.errors import EdgeVLMError
from edgevlm.export.coreml_ import CoreMLOptions, check_coreml, write_coreml
from edgevlm.export.coreml_ import write as coreml_write
from edgevlm.export.quantize.recipe import make_recipe
from edgevlm.export.quantize.round import quantize
from edgevlm.inputs.layout import Layout, Span
from edgevlm.inputs.preprocess import normalize
from edgevlm.inputs.rules import OverlappingTiles, Stretch
from edgevlm.io.records import to_dict
from edgevlm.models.components import components
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import Attention, Block, Decoder, Mlp, Norm, Rope
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.models.towers.sheet_vit import SheetVit
from edgevlm.models.towers.vit import Vit
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.coreml import runtime
from edgevlm.runtimes.coreml.runtime import CoreMLDecoder, CoreMLEncoder
from edgevlm.runtimes.mil.trace import find_divergence
from edgevlm.types import F32, U8
from edgevlm.verify.lint_ane import lint_package

pytest.importorskip("coremltools", reason="coremltools is not installed (pip install '.[coreml]')")


def plain(weights: Drawn) -> Callable[[str], QTensor]:
    return lambda name: quantize(weights.read(name), "fp32", name)


class Exported:
    def __init__(self, folder: Path, spec: ModelSpec, options: CoreMLOptions) -> None:
        self.spec, self.weights = spec, Drawn(spec)
        check_coreml(spec, options)  # refuses none that can be written
        (folder / "coreml").mkdir(parents=True)

        self.entry = write_coreml(
            folder / "coreml", spec, self.weights, make_recipe("fp32"), plain(self.weights), options
        )
        image = IMAGE
        if isinstance(spec.vision, Vit):
            side, (rows, _) = spec.vision.image_size, spec.token_grid(spec.vision.image_size, spec.vision.image_size)
            image = replace(IMAGE, rule=Stretch(side), token_pixels=side // rows)
        elif isinstance(spec.vision, SheetVit):
            image = replace(IMAGE, rule=OverlappingTiles(16, 4, 6), token_pixels=None, tokens=16)
        write_json(folder / "preprocess.json", to_dict(image))
        files = {str(path.relative_to(folder)): None for path in folder.rglob("*") if path.is_file()}
        manifest = SimpleNamespace(spec=spec, targets={"coreml": self.entry}, files=files)
        self.bundle = Bundle(folder, cast(Any, manifest))

    def encoder(self, storage: str = "fp32") -> CoreMLEncoder:
        return CoreMLEncoder(self.bundle, EngineOptions(storage=storage), evaluate=True)

    def decoder(self) -> CoreMLDecoder:
        return CoreMLDecoder(self.bundle, EngineOptions(storage="fp32"), evaluate=True)

    def features(self, view: U8) -> F32:
        return features(self.spec, self.weights, view)

    def logits(self, embeds: F32, layout: Layout, keep: int = 1) -> F32:
        return logits(self.spec, self.weights, embeds, layout, keep)


PROFILES = {"gpu": CoreMLOptions("gpu", (64,)), "ane": CoreMLOptions("ane", (64,), image_side=48)}

BY_PROFILE = heavy_but(["ane"], PROFILES)


@pytest.mark.parametrize("profile", BY_PROFILE)
@pytest.mark.parametrize(
    "make",
    heavy_but([clip, convolved, levels], [clip, convolved, bottlenecks, intern, pooled, levels, windowed]),
    ids=lambda make: make.__name__,
)
def test_square_towers(tmp_path: Path, make: Callable[[], ModelSpec], profile: str) -> None:
    spec = make()
    model = Exported(tmp_path, spec, PROFILES[profile])
    assert isinstance(spec.vision, Vit)
    side = spec.vision.patches_per_side
    view = picture(side, side, spec.vision.patch_size)
    views = [view, 191 - view // 2]
    wanted = np.concatenate([model.features(view) for view in views])
    assert cosine(np.concatenate(model.encoder().encode(views)), wanted) >= 0.99999
    assert cosine(np.concatenate(model.encoder("fp16").encode(views)), wanted) >= 0.9999
    assert cosine(model.decoder().forward(wanted), model.logits(wanted, Layout(0))[-1]) >= 0.99999


GRIDS = {f"{make.__name__}-{profile}": (make, profile) for make in (qwen, deep, woven, gated) for profile in PROFILES}


@pytest.fixture(scope="module", params=heavy_but([n for n in GRIDS if n.endswith("ane")], GRIDS))
def grid_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    make, profile = GRIDS[request.param]
    return Exported(tmp_path_factory.mktemp("grid"), make(), PROFILES[profile])


@pytest.mark.parametrize("grid", heavy_but([(6, 10)], [(6, 10), (4, 4), (2, 14), (12, 12)]))
def test_pictures_of_any_grid(grid_model: Exported, grid: tuple[int, int]) -> None:
    view = picture(*grid, 4)
    wanted = grid_model.features(view)
    assert wanted.shape == (grid[0] * grid[1] // 4, grid_model.spec.decoder.embed_width)
    encoder = grid_model.encoder()
    (found,) = encoder.encode([view])
    assert cosine(found, wanted) >= 0.99999
    assert cosine(grid_model.encoder("fp16").encode([view])[0], wanted) >= 0.9999
    np.testing.assert_array_equal(encoder.encode([view, view]), [found, found])


@pytest.mark.parametrize("profile", BY_PROFILE)
def test_a_sheet_of_squares(tmp_path: Path, profile: str) -> None:
    """Three rows of two squares, of which the first row has one, and a single crop; `ane` has room for 3 x 3."""
    model = Exported(tmp_path, sheet(), PROFILES[profile])
    for rows, cols in ((3, 2), (2, 1)):
        view = picture(4 * rows, 4 * cols, 4)
        wanted = model.features(view)
        assert wanted.shape == (16, 64)
        assert cosine(model.encoder().encode([view])[0], wanted) >= 0.99999
        assert cosine(model.encoder("fp16").encode([view])[0], wanted) >= 0.9999


def test_a_picture_beyond_a_fixed_encoder_is_refused(grid_model: Exported) -> None:
    encoder, view = grid_model.encoder(), picture(16, 16, 4)
    if grid_model.entry.profile == "gpu":
        assert cosine(encoder.encode([view])[0], grid_model.features(view)) >= 0.99999
    else:
        with pytest.raises(EdgeVLMError, match=r"'patches' the shape \[1, 256, 48\].*room for \[1, 144, 48\]"):
            encoder.encode([view])


def _embeds(model: Exported, positions: int) -> F32:
    width = model.spec.decoder.embed_width
    return np.random.default_rng(5).normal(0, 1, (positions, width)).astype(np.float32)


def test_positions_of_three_axes(grid_model: Exported) -> None:
    """A prompt with two pictures, read in two parts, and an answer behind it."""
    embeds = _embeds(grid_model, 30)
    wanted = grid_model.logits(embeds, LAYOUT, keep=30)
    decoder = grid_model.decoder()
    assert cosine(decoder.forward(embeds[:24], LAYOUT), wanted[23]) >= 0.99999
    for i in range(24, 30):
        assert cosine(decoder.forward(embeds[i : i + 1]), wanted[i]) >= 0.99999
    decoder.rewind(17)  # the layout stays that of the conversation
    assert cosine(decoder.forward(embeds[17:24]), wanted[23]) >= 0.99999
    decoder.rewind(0)
    text_alone = grid_model.logits(embeds, Layout(30))[-1]
    assert cosine(decoder.forward(embeds), text_alone) >= 0.99999
    assert cosine(wanted[-1], text_alone) < 0.999


def _convolving(model: Exported) -> bool:
    assert isinstance(model.spec.vision, QwenVit)
    return bool(model.spec.vision.convolving)


def test_fixed_programs_stay_on_the_neural_engine(grid_model: Exported) -> None:
    """By the lint: a token order that is gathered leaves it, flexible lengths all the more."""
    folder = grid_model.bundle.folder / "coreml"
    reports = [lint_package(folder / f"{name}.mlpackage") for name in ("VisionEncoder", "Decoder")]
    if grid_model.entry.profile == "gpu":
        assert not any(report.passed for report in reports)
        return
    vision, decoder = reports
    gathers = [finding.where.split("/")[1] for finding in vision.findings if finding.rule == "cpu-operation"]
    assert vision.passed and {finding.rule for finding in vision.findings} <= {"cpu-operation", "padded-axis"}
    (function,) = vision.functions
    outside = [op for op, unit in function.operations.items() if unit == "cpu"]
    indices = [op for op in outside if op.startswith(("slice_by_index", "squeeze"))]  # whole numbers, of neighbours
    assert [op for op in outside if op not in indices] == gathers
    taken = {"order", "table_rows", "neighbours"} & set(grid_model.spec.vision.inputs())
    assert bool(gathers) == bool(taken)
    assert len(indices) == (18 if _convolving(grid_model) else 0)
    # Heads of 16 values are what state-alignment is for.
    assert {finding.rule for finding in decoder.findings} <= {"padded-axis", "state-alignment"}


def test_every_named_value_is_the_references(grid_model: Exported) -> None:
    embeds = _embeds(grid_model, 24)
    side = 48 if grid_model.entry.profile == "ane" else 24  # the reference pads nothing
    pixels = normalize(picture(side // 4, side // 4, 4), IMAGE)
    assert find_divergence(grid_model.bundle, grid_model.weights, pixels, embeds, layout=LAYOUT) is None


@pytest.mark.parametrize("profile", BY_PROFILE)
def test_windows_caps_and_norms_behind_parts(tmp_path: Path, profile: str) -> None:
    """Gemma's decoder."""
    model = Exported(tmp_path, clip(gemma()), PROFILES[profile])
    embeds = np.random.default_rng(5).normal(0, 1, (40, WIDTH)).astype(np.float32)
    decoder = model.decoder()
    assert cosine(decoder.forward(embeds), model.logits(embeds, Layout(0))[-1]) >= 0.99999
    np.testing.assert_array_equal(decoder.embed(np.array([3])), model.weights.read("decoder.embed.weight")[3:4] * 6.5)


@pytest.mark.parametrize("profile", BY_PROFILE)
def test_streams_of_states(tmp_path: Path, profile: str) -> None:
    """Gemma 3n's decoder; every value that the reference names is the package's."""
    model = Exported(tmp_path, clip(streaming()), PROFILES[profile])
    embeds, decoder = _embeds(model, 30), model.decoder()
    logits = model.logits(embeds, Layout(30), keep=30)
    assert cosine(decoder.forward(embeds[:24]), logits[23]) >= 0.99999
    for i in range(24, 30):
        assert cosine(decoder.forward(embeds[i : i + 1]), logits[i]) >= 0.99999
    side = getattr(model.spec.vision, "image_size", 0) // 8
    pixels = normalize(picture(side, side, 8), IMAGE)
    assert find_divergence(model.bundle, model.weights, pixels, embeds[:24], layout=Layout(24)) is None


@pytest.mark.heavy
@pytest.mark.parametrize("profile", BY_PROFILE)
def test_heads_of_two_sizes_and_layers_that_share(tmp_path: Path, profile: str) -> None:
    """Gemma 4's: two packed states, keys and values of other layers, a second table, maps with bounds."""
    model, ids = Exported(tmp_path, averaged(), PROFILES[profile]), np.array([3, 5])
    view = picture(8, 6, 4)
    wanted = model.features(view)
    assert cosine(model.encoder().encode([view])[0], wanted) >= 0.99999
    assert cosine(model.encoder("fp16").encode([view])[0], wanted) >= 0.9999
    embeds, decoder = _embeds(model, 30), model.decoder()
    logits = model.logits(embeds, Layout(30), keep=30)
    assert cosine(decoder.forward(embeds[:24]), logits[23]) >= 0.99999
    decoder.rewind(17)
    for i in range(17, 30):
        assert cosine(decoder.forward(embeds[i : i + 1]), logits[i]) >= 0.99999
    first, second = (model.weights.read(f"decoder.{name}.weight")[ids] for name in ("embed", "per_layer_embed"))
    rows = np.concatenate([first * np.float32(6.5), second * np.float32(3.5)], axis=1)
    np.testing.assert_array_equal(decoder.embed(ids), rows)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            replace(
                PLAIN, blocks=(*PLAIN.blocks, Block((Attention(4, 2, 16, reads="memory"),), Mlp(80))), layers=(0, 1)
            ),
            r"'1.key' \(memory\)",
        ),
        (
            replace(
                PLAIN,
                blocks=(*PLAIN.blocks, *(Block((Attention(4, n, 16),), Mlp(80)) for n in (1, 4))),
                layers=(0, 1, 2),
            ),
            "heads of more numbers or sizes",
        ),
        (replace(PLAIN, learned_positions=128), "no operation 'positions'"),
    ],
    ids=["memory", "heads", "positions"],
)
def test_what_packages_do_not_hold_is_refused(tmp_path: Path, spec: Decoder, message: str) -> None:
    """... at the first question, and by what writes them."""
    whole = clip(replace(spec, layers=spec.layers * 2))
    with pytest.raises(EdgeVLMError, match=message):
        check_coreml(whole, PROFILES["gpu"])
    with pytest.raises(EdgeVLMError, match=message):
        write_coreml(tmp_path, whole, Drawn(whole), make_recipe("fp32"), plain(Drawn(whole)), PROFILES["gpu"])


def test_a_layer_of_each_kind_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """30 layers take as long as two kinds do; layers behind which something is taken are all there."""
    asked: list[ModelSpec] = []
    monkeypatch.setattr(coreml_write, "components", lambda spec: asked.append(spec) or components(spec))
    check_coreml(clip(replace(PLAIN, layers=PLAIN.layers * 10)), PROFILES["gpu"])
    check_coreml(levels(), PROFILES["gpu"])
    assert asked[0].decoder.layers == (0,) and asked[0].vision.num_layers == 1
    assert asked[1] == levels()


def test_a_side_that_no_view_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeVLMError, match="multiples of 8; give 48"):
        Exported(tmp_path, qwen(), CoreMLOptions("ane", (64,), image_side=50))


@pytest.mark.parametrize("profile", BY_PROFILE)
@pytest.mark.parametrize("mask", heavy_but(["image"], ["image", "prompt"]))
def test_positions_that_see_later_ones(tmp_path: Path, mask: str, profile: str) -> None:
    """A picture, or a prompt, is read by one call; a fixed one writes 32 rows of it at a time."""
    layout = Layout(90, (Span(40, (6, 6)),))
    model = Exported(tmp_path, _of_36_tokens(replace(gemma(), mask=mask)), CoreMLOptions(profile, (128,)))
    embeds = np.random.default_rng(5).normal(0, 1, (94, WIDTH)).astype(np.float32)
    wanted, decoder = model.logits(embeds, layout, keep=94), model.decoder()
    assert cosine(decoder.forward(embeds[:90], layout), wanted[89]) >= 0.99999
    for i in range(90, 94):
        assert cosine(decoder.forward(embeds[i : i + 1]), wanted[i]) >= 0.99999
    assert cosine(wanted[89], model.logits(embeds[:90], Layout(0))[-1]) < 0.999
    if profile == "ane":
        whole = {"image": 64, "prompt": 128}[mask]
        assert [each.rows for each in model.entry.decoder.functions.values()] == [32, 1, whole]
        assert not [found for found in lint_package(_decoder_package(model)).findings if found.rule == "update-rows"]


def _of_36_tokens(decoder: Decoder) -> ModelSpec:
    spec = clip(decoder)
    assert isinstance(spec.vision, Vit)
    return replace(spec, vision=replace(spec.vision, image_size=48))


def _decoder_package(model: Exported) -> Path:
    return model.bundle.folder / "coreml" / "Decoder.mlpackage"


def test_a_picture_without_room_behind_the_prompt_is_refused(tmp_path: Path) -> None:
    model = Exported(tmp_path, _of_36_tokens(replace(PLAIN, mask="image")), CoreMLOptions("ane", (96,)))
    embeds = np.random.default_rng(5).normal(0, 1, (90, WIDTH)).astype(np.float32)
    with pytest.raises(EdgeVLMError, match=r"36 positions see each other .* no room behind 50: use a longer context"):
        model.decoder().forward(embeds, Layout(90, (Span(50, (6, 6)),)))


@pytest.mark.parametrize("mask", ["image", "prompt"])
def test_a_long_prompt_is_cut_beside_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str) -> None:
    """In calls of 7 positions, but for a picture of 10; a prompt that sees itself is one call."""
    near, far = gemma().blocks
    own = replace(near.mixers[0], rope="local", qk_norm=Norm("rms", 1e-6))
    ropes = gemma().ropes | {"local": Rope(1e2, 16)}
    spec = clip(replace(gemma(), blocks=(replace(near, mixers=(own,)), far), ropes=ropes, mask=mask))
    model = Exported(tmp_path, spec, PROFILES["gpu"])
    embeds = np.random.default_rng(5).normal(0, 1, (LAYOUT.length, WIDTH)).astype(np.float32)
    monkeypatch.setattr(runtime, "PROMPT_ROWS", 7)
    decoder, wanted = model.decoder(), model.logits(embeds, LAYOUT)[-1]
    sizes: list[int] = []
    call = decoder._call
    monkeypatch.setattr(decoder, "_call", lambda rows: (sizes.append(len(rows)), call(rows))[1])
    np.testing.assert_allclose(decoder.forward(embeds, LAYOUT), wanted, atol=2e-3)
    assert sizes == {"image": [3, 10, 2, 7, 2], "prompt": [24]}[mask]
