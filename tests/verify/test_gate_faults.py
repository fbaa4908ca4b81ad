"""Faults planted in the export, so that every hash fits: each is caught at its level and named."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import lfm2_vl, mistral3, qwen3_5

import edgevlm.export.coreml_
import edgevlm.export.gguf_
import edgevlm.export.onnx_.emit
from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.bundle.qtensor import QTensor
from edgevlm.checkpoint import families
from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_model
from edgevlm.errors import EdgeVLMError, GateError
from edgevlm.export import pipeline, source
from edgevlm.export.onnx_.graph import Graph
from edgevlm.export.onnx_.ops import OnnxOps
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.export.quantize.model import QuantizedModel
from edgevlm.export.quantize.recipe import fit, make_recipe
from edgevlm.inputs import grids, preprocess, prompt, rules
from edgevlm.inputs.prompt import Prompter
from edgevlm.inputs.rules import Rule, TilesThenWhole
from edgevlm.inputs.spec import ImageSpec, PromptSpec
from edgevlm.inputs.views import ResizeTo, Sheet, Step, View
from edgevlm.verify import gate
from edgevlm.verify.gate import GateOptions, run_gate
from edgevlm.verify.report import GateReport, Row, divergence, kl_divergence
from edgevlm.verify.targets import JUDGES
from edgevlm.verify.views import check_views

WEIGHT = "vision.layers.1.o.weight"
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def failed_export(checkpoint: Path, out: Path, quantize: str = "fp32") -> GateReport:
    """The report of an export that the gate must refuse; its manifest holds the same result."""
    with pytest.raises(GateError) as caught:
        export_model(ExportOptions(str(checkpoint), out, quantize=quantize, preset="size"))
    assert not out.exists()
    saved = open_bundle(out.with_name(f"{out.name}.failed")).manifest.gate
    assert saved is not None and saved == caught.value.report.to_dict()
    return caught.value.report


def by_check(report: GateReport, check: str) -> Row:
    return next(row for row in report.rows if row.check == check)


def change_weight(
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[QTensor], QTensor],
    module: Any = edgevlm.export.onnx_.emit,
    function: str = "write_onnx",
) -> None:
    """Let an emitter receive WEIGHT changed, while the gate still knows what the quantizer makes of it."""
    real = getattr(module, function)

    def write(*arguments: Any) -> Any:
        index = next(i for i, value in enumerate(arguments) if getattr(value, "__name__", "") == "quantized")
        quantized = arguments[index]

        def faulty(name: str) -> QTensor:
            return change(quantized(name)) if name == WEIGHT else quantized(name)

        return real(*arguments[:index], faulty, *arguments[index + 1 :])

    monkeypatch.setattr(module, function, write)


def transpose(tensor: QTensor) -> QTensor:
    return replace(tensor, codes=np.ascontiguousarray(tensor.codes.T))


def swap_scales(tensor: QTensor) -> QTensor:
    assert tensor.scale is not None
    scale = tensor.scale.copy()
    scale[[3, 4]] = scale[[4, 3]]
    return replace(tensor, scale=scale)


def test_a_transposed_weight_is_caught_among_the_numbers(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_weight(monkeypatch, transpose)
    report = failed_export(tiny_checkpoint, tmp_path / "out")
    row = report.failures()[0]
    assert (row.level, row.where, row.measured) == ("numbers", WEIGHT, 1)
    assert row.note == f"first: {WEIGHT}: transposed"
    assert f"{WEIGHT}: transposed" in report.first_failure()


def test_a_swapped_scale_is_caught_among_the_numbers(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_weight(monkeypatch, swap_scales)
    report = failed_export(tiny_checkpoint, tmp_path / "out", "int8")
    row = report.failures()[0]
    assert (row.level, row.where) == ("numbers", WEIGHT)
    assert row.note == f"first: {WEIGHT}: 2 scales swapped, first in row 3, block 0"


@pytest.mark.parametrize(
    ("target", "module", "function"),
    [
        ("gguf", edgevlm.export.gguf_, "write_gguf"),
        ("coreml", edgevlm.export.coreml_, "write_coreml"),
    ],
)
@pytest.mark.parametrize(("change", "kind"), [(transpose, "int8"), (swap_scales, "int4")])
def test_other_targets_are_held_to_the_quantizer_too(
    gguf_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    module: Any,
    function: str,
    change: Callable[[QTensor], QTensor],
    kind: str,
) -> None:
    pytest.importorskip({"gguf": "gguf", "coreml": "coremltools"}[target])
    change_weight(monkeypatch, change, module, function)
    options = ExportOptions(str(gguf_checkpoint), tmp_path / "out", (target,), kind, "size", gate=False)
    bundle = open_bundle(export_model(options).folder)
    _, weights = read_model(open_checkpoint(str(gguf_checkpoint)))
    _, rows = gate._weights(bundle, QuantizedModel(weights, fit(make_recipe(kind, "size"), weights)))
    (row,) = rows
    assert (row.target, row.passed, row.measured, row.where) == (target, False, 1, WEIGHT)


def test_a_wrong_std_is_caught_and_named(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = families.read_image_spec
    monkeypatch.setattr(pipeline, "read_image_spec", lambda *a: replace(real(*a), std=CLIP_STD))
    report = failed_export(tiny_checkpoint, tmp_path / "out")
    rules, tiles = report.failures()
    assert (rules.level, rules.where) == ("numbers", "preprocess.json: std")
    assert rules.note.startswith("std: (0.26862954, 0.26130258, 0.27577711) instead of (0.5, 0.5, 0.5)")
    assert tiles.check == "tiles that differ from Pillow's" and "values are off by up to" in tiles.note


def test_a_wrong_mean_is_caught_even_where_the_exporters_own_reader_is_at_fault(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = families.read_image_spec
    for module in (pipeline, source):
        monkeypatch.setattr(module, "read_image_spec", lambda *a: replace(real(*a), mean=(0.48, 0.46, 0.41)))
    (row,) = failed_export(tiny_checkpoint, tmp_path / "out").failures()
    assert (row.level, row.where) == ("numbers", "preprocess.json: mean")


def roll_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tile of a grid one place late; the whole picture stays last."""
    real = preprocess.cut

    def rolled(*arguments: Any) -> Any:
        *tiles, whole = real(*arguments)
        return [*tiles[-1:], *tiles[:-1], whole]

    monkeypatch.setattr(preprocess, "cut", rolled)


def test_a_tile_order_off_by_one_is_caught_and_named(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roll_tiles(monkeypatch)
    recorded, row = failed_export(tiny_checkpoint, tmp_path / "out").failures()
    assert (recorded.check, recorded.measured) == (PROCESSOR, 8)  # 1 x 1 is of one color
    assert recorded.note == "1 x 97: other pixels"
    assert (row.level, row.check, row.measured) == ("numbers", "tiles that differ from Pillow's", 6)
    assert row.where == "tile 1 (row 1, column 1)"
    assert row.note == "tile 1 (row 1, column 1) holds row 2, column 3: tile order"


PROCESSOR = "sizes whose views differ from the original processor's"


def swapped(rule: Any, width: int, height: int, budget: int | None = None) -> list[View]:
    return REAL_VIEWS(rule, height, width, budget)


def by_column(canvas: Any, side: int) -> list[View]:
    return sorted(REAL_TILES(canvas, side), key=lambda view: (view.place or (0, 0))[::-1])


def from_zero(canvas: Any, side: int) -> list[View]:
    return [replace(view, place=(view.place[0] - 1, view.place[1] - 1)) for view in REAL_TILES(canvas, side)]


def wider(rule: Any, width: int, height: int, edge: int | None) -> tuple[ResizeTo, ...]:
    return tuple(replace(step, width=step.width + 2) for step in REAL_SCALE(rule, width, height, edge))


def no_whole(rule: Any, width: int, height: int, budget: int | None = None) -> list[View]:
    views = REAL_VIEWS(rule, width, height, budget)
    return views[:-1] if len(views) > 1 else views


REAL_VIEWS, REAL_TILES = TilesThenWhole.views, grids.tiles
REAL_SCALE = TilesThenWhole._scale
FAULTS = {
    "width and height swapped": (TilesThenWhole, "views", swapped),
    "tiles column by column": (grids, "tiles", by_column),
    "places from zero": (grids, "tiles", from_zero),
    "a first resize two pixels wider": (TilesThenWhole, "_scale", wider),
    "the whole picture left out": (TilesThenWhole, "views", no_whole),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_plan_is_caught(
    name: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides of every other check follow one plan: only what the original's processor made is apart from it."""
    owner, attribute, fault = FAULTS[name]
    monkeypatch.setattr(owner, attribute, fault)
    report = failed_export(tiny_checkpoint, tmp_path / "out")
    assert by_check(report, PROCESSOR) in report.failures() and by_check(report, PROCESSOR).measured > 0


def spec_of(rule: Rule) -> ImageSpec:
    return ImageSpec(2, rule, "bicubic", (255, 255, 255), 1 / 255, (0.5,) * 3, (0.5,) * 3, 8)


RULES: dict[str, Rule] = {
    rule.kind: rule
    for rule in (
        rules.Stretch(48), rules.Crop(48, 48), rules.Pad(48, (1, 2, 3)), rules.Fit(48, 14, (1, 2, 3)),
        rules.TilesThenWhole(48, 192, 4096, 2, True), rules.WholeThenTiles(48, 144, False, "bilinear"),
        rules.RatioTiles(48, 1, 6, True), rules.CoveringTiles(48, 6), rules.Native(16, 1024, 10240),
        rules.NativeGrown(16, 1024, 10240), rules.Filled(12, 70), rules.OverlappingTiles(48, 8, 6),
        rules.NativeScaled(16, 1024, 10240),
        rules.NativeOrTiles(8, 16, 1024, 3072, 6144, 48, 2, 6, True), rules.Within(16, 512),
        rules.BestGrid(48, ((1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (1, 3), (3, 3))),
    )
}  # fmt: skip
TILED = ("tiles_then_whole", "whole_then_tiles", "ratio_tiles", "native_or_tiles", "covering_tiles", "best_grid")
Planned = Callable[..., list[View]]


@pytest.mark.parametrize("kind", RULES)
def test_every_rule_has_its_witness(kind: str) -> None:
    row = check_views(spec_of(RULES[kind]))
    assert row.passed and row.note == f"9 pictures, rule '{kind}'"


def change_steps(change: Callable[[Step], Step]) -> Callable[[Planned, Any, int, int], list[View]]:
    def changed(view: View) -> View:
        return replace(view, steps=tuple(map(inside, view.steps)))

    def inside(step: Step) -> Step:
        return replace(step, parts=tuple(map(changed, step.parts))) if isinstance(step, Sheet) else change(step)

    return lambda real, rule, width, height: [changed(view) for view in real(rule, width, height)]


def sheet_in_another_order(real: Planned, rule: Any, width: int, height: int) -> list[View]:
    (view,) = real(rule, width, height)
    (sheet,) = view.steps
    assert isinstance(sheet, Sheet)
    whole, *crops = sheet.parts
    return [replace(view, steps=(replace(sheet, parts=(whole, *crops[::-1])),))]


def one_view_fewer(real: Planned, rule: Any, width: int, height: int) -> list[View]:
    count = len(real(rule, width, height))
    return real(rule, width, height, count - 1) if count > 2 else real(rule, width, height)


def whole_picture_elsewhere(real: Planned, rule: Any, width: int, height: int) -> list[View]:
    views = real(rule, width, height)
    return sorted(views, key=lambda view: view.place is None, reverse=views[-1].place is None)


# What is wrong: how a rule's plan is spoiled, and the rules that it says something about (a square is always one).
PLAN_FAULTS: dict[str, tuple[Callable[[Planned, Any, int, int], list[View]], tuple[str, ...]]] = {
    "width and height swapped": (
        lambda real, rule, width, height: real(rule, height, width), tuple(kind for kind in RULES if kind != "stretch")
    ),
    "a resize one pixel wider": (
        change_steps(lambda step: replace(step, width=step.width + 1) if isinstance(step, ResizeTo) else step),
        tuple(RULES),
    ),
    "cut or laid one pixel too far right": (
        change_steps(lambda step: step if isinstance(step, ResizeTo) else replace(step, left=step.left + 1)),
        ("crop", "pad", "fit", "overlapping_tiles", *TILED),
    ),
    "tiles column by column": (
        lambda real, rule, width, height: sorted(
            real(rule, width, height), key=lambda view: view.place[::-1] if view.place else (99, 99)
        ),
        TILED,
    ),
    "the first two tiles exchanged": (
        lambda real, rule, width, height: exchanged(real(rule, width, height)), TILED
    ),
    "the whole picture at the other end": (whole_picture_elsewhere, TILED),
    "crops of a sheet in another order": (sheet_in_another_order, ("overlapping_tiles",)),
    "the next smaller grid": (one_view_fewer, TILED),
}  # fmt: skip


def exchanged(views: list[View]) -> list[View]:
    """Their pixels alone: places stay as they are."""
    tiles = [i for i, view in enumerate(views) if view.place]
    if len(tiles) > 1:
        one, two = tiles[:2]
        first, second = views[one], views[two]
        views[one], views[two] = replace(first, steps=second.steps), replace(second, steps=first.steps)
    return views


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, (_, kinds) in PLAN_FAULTS.items() for kind in kinds])
def test_a_fault_in_a_rules_plan_is_caught(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, fault = type(RULES[kind]), PLAN_FAULTS[name][0]
    real = owner.views
    monkeypatch.setattr(owner, "views", lambda rule, width, height, budget=None: fault(real, rule, width, height))
    assert not check_views(spec_of(RULES[kind])).passed


def next_whole(value: float) -> int:
    return math.floor(value) + 1


ROUNDING: dict[str, tuple[str, Callable[[float], int]]] = {
    "crop": ("int", next_whole),
    "fit": ("round", math.floor),
    "tiles_then_whole": ("ceil", next_whole),
    "whole_then_tiles": ("ceil", next_whole),
    "native": ("round", math.floor),
    "native_or_tiles": ("round", math.floor),
}


@pytest.mark.parametrize("kind", ROUNDING)
def test_a_rule_that_rounds_another_way_is_caught(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, (name, rounded) = type(RULES[kind]), ROUNDING[kind]
    real, modules = owner.views, (sys.modules[owner.__module__], grids)

    def faulty(rule: Any, width: int, height: int, budget: int | None = None) -> list[View]:
        with pytest.MonkeyPatch.context() as patch:
            for module in modules:
                if name == "ceil":
                    patch.setattr(module, "math", SimpleNamespace(**vars(math) | {name: rounded}))
                else:
                    patch.setattr(module, name, rounded, raising=False)
            return real(rule, width, height)

    monkeypatch.setattr(owner, "views", faulty)
    assert not check_views(spec_of(RULES[kind])).passed


def test_a_grid_of_another_shape_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = grids.nearest_grid
    monkeypatch.setattr(grids, "nearest_grid", lambda *arguments: real(*arguments)[::-1])
    row = check_views(spec_of(RULES["ratio_tiles"]))
    assert not row.passed and row.note == "1 x 97: 1 x 6 tiles instead of 6 x 1"


def without_newline(spec: PromptSpec) -> PromptSpec:
    return replace(spec, picture=replace(spec.picture, row_close=""))


def test_a_missing_newline_is_caught_among_the_tokens(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = families.read_prompt
    monkeypatch.setattr(pipeline, "read_prompt", lambda *a: real(*a)._replace(spec=without_newline(real(*a).spec)))
    report = failed_export(tiny_checkpoint, tmp_path / "out")
    assert {row.level for row in report.failures()} == {"tokens"}
    rules, tiled, two = report.failures()
    assert rules.where == "prompt.json: picture.row_close" and rules.note == "picture.row_close: '' instead of '\\n'"
    assert tiled.check == "prompt ids that differ, 3 x 4" and "instead of '\\n'" in tiled.note
    assert two.check == "prompt ids that differ, one tile and 2 x 1"


def test_a_newline_that_the_code_drops_is_caught_too(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rules are right and the program that follows them is not."""
    real = Prompter.encode

    def encode(self: Prompter, *arguments: Any, **options: Any) -> Any:
        spec = self.spec
        self.spec = without_newline(spec)
        try:
            return real(self, *arguments, **options)
        finally:
            self.spec = spec

    monkeypatch.setattr(Prompter, "encode", encode)
    report = failed_export(tiny_checkpoint, tmp_path / "out")
    assert [row.check for row in report.failures()] == [
        "prompt ids that differ, 3 x 4",
        "prompt ids that differ, one tile and 2 x 1",
    ]


def test_a_break_between_rows_that_the_code_drops_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two rows of image tokens stands a token."""

    def run_on(bundle: Bundle) -> Prompter:
        made = real(bundle)
        made.spec = replace(made.spec, picture=replace(made.spec.picture, line_break=""))
        return made

    real = Bundle.prompter
    mistral3.build(tmp_path / "checkpoint")
    monkeypatch.setattr(Bundle, "prompter", run_on)
    first = failed_export(tmp_path / "checkpoint", tmp_path / "out").failures()[0]
    assert (first.target, first.level) == ("inputs", "tokens") and first.check.startswith("prompt ids that differ")
    assert first.note.endswith("after '[IMG]': '[IMG]' instead of '[IMG_BREAK]'")


def test_rows_of_tiles_in_another_order_are_caught(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upside_down(around: Any, views: Any, index: int) -> Any:
        rows = max((view.place[0] for view in views if view.place), default=0)
        turned = [v._replace(place=v.place and (rows + 1 - v.place[0], v.place[1])) for v in views]
        return real(around, turned, index)

    real = prompt.picture_parts
    monkeypatch.setattr(prompt, "picture_parts", upside_down)
    failures = failed_export(tiny_checkpoint, tmp_path / "out").failures()
    assert failures[0].check == "prompt ids that differ, 3 x 4"
    assert failures[0].note.endswith("'<row_3_col_1>' instead of '<row_1_col_1>'")


@pytest.mark.parametrize("lost", [pytest.param("1.delta", marks=pytest.mark.heavy), "1.conv"])
def test_a_delta_rule_that_forgets_is_caught_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """What a matrix of associations, or a convolution before it, held of the first part of a prompt."""

    def node(graph: Graph, op: str, *inputs: Any, **options: Any) -> Any:
        inputs = tuple(
            real(graph, "Mul", name, graph.constant(0.0, np.float32), outputs=1)[0]
            if name == f"past_key_values.{lost}"
            else name
            for name in inputs
        )
        return real(graph, op, *inputs, **options)

    real = Graph.nodes
    qwen3_5.build(tmp_path / "checkpoint")
    monkeypatch.setattr(Graph, "nodes", node)
    report = failed_export(tmp_path / "checkpoint", tmp_path / "out")
    assert by_check(report, "prefill logits, cosine").passed
    row = next(row for row in report.failures() if row.check.startswith("prefill after"))
    assert (row.target, row.note, row.where) == ("onnx", f"not carried: {lost}", lost)


@pytest.mark.parametrize("lost", ["all", "2.conv"])
def test_a_state_that_is_not_carried_is_caught_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """A prompt read at once shows nothing of it: what comes in a second call is another answer."""

    def forgetful(self: OnnxOps, x: Any, name: str, width: int, kernel: int, state: str) -> str:
        past = "" if lost in ("all", state) else f"past_key_values.{state}"
        options = {"domain": "com.microsoft", "activation": "none", "channels_last": 1}
        inputs, outputs = [self.value(x), self._taps(name), "", past], [f"{name}.out", f"present.{state}"]
        return self.graph.nodes("CausalConvWithState", *inputs, outputs=outputs, **options)[0]

    lfm2_vl.build(tmp_path / "checkpoint")
    monkeypatch.setattr(OnnxOps, "causal_conv", forgetful)
    report = failed_export(tmp_path / "checkpoint", tmp_path / "out")
    assert by_check(report, "prefill logits, cosine").passed
    row = next(row for row in report.failures() if row.check.startswith("prefill after"))
    assert (row.target, row.level) == ("onnx", "numbers")
    assert row.note == f"not carried: {'0.conv, 2.conv, 3.conv' if lost == 'all' else lost}"
    assert row.where == ("0.conv" if lost == "all" else lost)


@pytest.mark.heavy
def test_a_bundle_alone_is_held_to_what_its_export_recorded(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ExportOptions(str(tiny_checkpoint), tmp_path / "out", quantize="fp32")
    bundle = open_bundle(export_model(options).folder)
    report = run_gate(bundle)
    assert report.passed
    assert by_check(report, "ids other than at the export").passed
    assert by_check(report, "reference features as at the export, cosine").measured > 0.999999
    assert report.golden == (bundle.manifest.gate or {})["golden"]

    real = preprocess.cut
    monkeypatch.setattr(preprocess, "cut", lambda *arguments: [view ^ 1 for view in real(*arguments)])
    report = run_gate(bundle)
    where = {row.where for row in report.failures()} - {""}  # features have no place
    assert where == {"picture 1 x 1: other pixels", "tile 1 (row 1, column 1)", "one tile"}
    assert by_check(report, "views other than at the export").measured == 3

    manifest = replace(bundle.manifest, gate={"golden": {"views": 3, "ids": {}, "features": []}})
    with pytest.raises(EdgeVLMError, match="is malformed: export"):
        run_gate(replace(bundle, manifest=manifest))


def test_the_layer_where_a_graph_departs_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A fault in the graph of block 1 of the encoder, between its attention and its second norm."""
    options = ExportOptions(str(tiny_checkpoint), tmp_path / "out", quantize="fp32", gate=False)
    bundle = open_bundle(export_model(options).folder)
    path = bundle.path("onnx/vision_encoder.onnx")
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        names = ["vision.layers.1.o.bias" if name == "vision.layers.1.fc2.bias" else name for name in node.input]
        node.input[:] = names
    onnx.save(model, path)
    report = run_gate(bundle)
    layer = by_check(report, "first layer that differs")
    assert layer.where == "vision.post_norm"
    assert report.first_failure().endswith("; first at vision.post_norm")
    values = report.layers["onnx"]
    names = list(values)
    assert names.index("vision.layers.0.norm1") < names.index("vision.post_norm")
    assert values["vision.layers.1.norm2"] < 1e-5 < values["vision.post_norm"]


def test_what_was_not_judged_fails_where_it_must_be(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ExportOptions(str(tiny_checkpoint), tmp_path / "out", ("onnx", "coreml"), "fp32", gate=False)
    bundle = open_bundle(export_model(options).folder)
    monkeypatch.setattr(JUDGES["coreml"], "module", "no_such_engine")
    assert run_gate(bundle).passed
    strict = run_gate(bundle, options=GateOptions(strict=True))
    assert [row.check for row in strict.failures()] == ["NOT JUDGED"]
    assert strict.first_failure().startswith("coreml, NOT JUDGED no_such_engine is not installed")


def test_bounds_by_name(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    report = run_gate(bundle, options=GateOptions(bounds={"onnx.agreement": 1.1, "logits": 0.5}))
    assert {row.check.split(", ")[-1] for row in report.failures()} == {"top-1 agreement"}
    assert by_check(report, "prefill logits, cosine").bound == 0.5
    for name in ("speed", "loss.near_tie", "tensorrt.kl", "loss.onnx.kl"):
        with pytest.raises(EdgeVLMError, match=f"There is no bound '{name}'"):
            GateOptions(bounds={name: 1.0})


def test_kl_and_divergence_by_hand() -> None:
    """KL of (1/2, 1/2) from (1/4, 3/4) is ln 2 - ln 3 / 2 = 0.143841 (Cover and Thomas, example 2.3.1, in nats)."""
    half, quarter = np.log([[0.5, 0.5]]).astype(np.float32), np.log([[0.25, 0.75]]).astype(np.float32)
    assert kl_divergence(half, quarter) == pytest.approx(np.log(2) - np.log(3) / 2, abs=1e-6)
    assert kl_divergence(quarter, half) == pytest.approx(0.75 * np.log(3) - np.log(2), abs=1e-6)
    assert kl_divergence(half + 7, half) == pytest.approx(0, abs=1e-6)
    assert kl_divergence(half, half * np.float32("nan")) == np.inf
    assert divergence(np.array([3.0, 4.0], np.float32), np.array([3.0, 3.0], np.float32)) == pytest.approx(0.2)
    assert divergence(np.ones(2, np.float32), np.ones(3, np.float32)) == np.inf
