"""Faults planted in where patches and tokens stand, and in levels of features: the gate finds each and names it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_models import HALVES, MROPE, asked, clip, deep, halved, qwen
from tiny import qwen3_vl

from edgevlm.errors import GateError
from edgevlm.export.onnx_.ops import OnnxOps
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.generate import held
from edgevlm.inputs import layout
from edgevlm.models.model import ModelSpec
from edgevlm.models.towers import tables
from edgevlm.models.towers.halved_vit import HalvedVit
from edgevlm.models.towers.placed_vit import PlacedVit
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.verify import places, reference, runtime
from edgevlm.verify.report import Row

TESTS = Path(__file__).parents[1]


def proportional(resample: str = "centers") -> ModelSpec:
    """A table with centers in proportion."""
    spec = deep()
    assert isinstance(spec.vision, QwenVit)
    return replace(spec, vision=replace(spec.vision, resample=resample))


def on_canvas() -> ModelSpec:
    return replace(halved(), decoder=replace(MROPE, places="canvas"))


Plant = Callable[[pytest.MonkeyPatch], None]


def turned_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    real = QwenVit._rope
    monkeypatch.setattr(QwenVit, "_rope", lambda tower, row, col: real(tower, col, row))


def turned_table(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tables.resampled
    monkeypatch.setattr(tables, "resampled", lambda kind, side, down, across: real(kind, side, across, down))


def turned_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    real = layout._prompt_positions
    monkeypatch.setattr(layout, "_prompt_positions", lambda *a: real(*a)[[0, 2, 1]])


def turned_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    real = PlacedVit.feeds

    def turned(tower: PlacedVit, pixels: Any) -> Any:
        feeds = real(tower, pixels)
        return feeds | {"places": np.roll(feeds["places"], tower.places // 2, axis=-1)}

    monkeypatch.setattr(PlacedVit, "feeds", turned)


def turned_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    real = layout.canvas_positions
    monkeypatch.setattr(layout, "canvas_positions", lambda *given: real(*given)[[0, 2, 1]])


def turned_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    real = layout._numbered
    monkeypatch.setattr(layout, "_numbered", lambda *given: real(*given)[[0, 2, 1, 3]])


def swapped_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens column by column."""
    for kind in (QwenVit, HalvedVit):
        real = kind._window_order

        def by_column(tower: QwenVit, rows: int, cols: int, real: Any = real) -> Any:
            groups = real(tower, cols, rows)
            return np.where(groups >= 0, groups % rows * cols + groups // rows, -1)

        monkeypatch.setattr(kind, "_window_order", by_column)


def shifted_window(monkeypatch: pytest.MonkeyPatch) -> None:
    real = QwenVit.feeds

    def shifted(tower: QwenVit, pixels: Any) -> Any:
        feeds = real(tower, pixels)
        mask = feeds["window_mask"]
        return feeds | {"window_mask": np.roll(mask.reshape(-1), 1).reshape(mask.shape)}

    monkeypatch.setattr(QwenVit, "feeds", shifted)


def dropped_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    real = layout.merge

    def first_alone(embeds: Any, given: Any, features: Any) -> Any:
        width = embeds.shape[1] // 3
        return real(embeds, given, [np.pad(each[:, :width], ((0, 0), (0, 2 * width))) for each in features])

    for module in (places, reference, runtime, held):
        monkeypatch.setattr(module, "merge", first_alone)


def swapped_features(monkeypatch: pytest.MonkeyPatch) -> None:
    real = layout.merge
    for module in (places, reference, runtime, held):
        monkeypatch.setattr(module, "merge", lambda embeds, given, found: real(embeds, given, [f[::-1] for f in found]))


def forgotten_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of image tokens as if nothing stood between them."""
    real = layout.Span.places.fget
    assert real is not None
    monkeypatch.setattr(layout.Span, "places", property(lambda span: real(replace(span, gap=0))))


PLANTS: list[tuple[ModelSpec, Plant, str]] = [
    (deep(), turned_patches, "patches: rows and columns exchanged"),
    (deep(), turned_table, "table of positions: rows and columns exchanged"),
    (proportional(), turned_table, "table of positions: rows and columns exchanged"),
    (proportional("cubic"), turned_table, "table of positions: rows and columns exchanged"),
    (deep(), turned_tokens, "positions of tokens: rows and columns exchanged"),
    (deep(), swapped_rows, "patches: tokens in another order"),
    (deep(), dropped_levels, "levels of features: dropped"),
    (deep(), swapped_features, "levels of features: rows in another order"),
    (clip(), swapped_features, "features: rows in another order"),
    (clip(), forgotten_breaks, "features: in the places of other tokens"),
    (qwen(), turned_patches, "patches: rows and columns exchanged"),
    (halved(), turned_table, "table of positions: rows and columns exchanged"),
    (asked(), turned_waves, "places of patches: rows and columns exchanged"),
    (on_canvas(), turned_canvas, "positions of tokens: rows and columns exchanged"),
    (clip(HALVES), turned_numbers, "positions of tokens: other positions"),
    (halved(), swapped_rows, "patches: tokens in another order"),
    (qwen(), shifted_window, "patches: windows that hold or hide others' patches"),
]


@pytest.mark.parametrize(("spec", "plant", "where"), PLANTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_fault_is_named(spec: ModelSpec, plant: Plant, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(row.passed for row in places.check_places(spec))
    plant(monkeypatch)
    wrong = [row for row in places.check_places(spec) if not row.passed]
    assert where in [row.where for row in wrong]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places") / "checkpoint"
    qwen3_vl.build(folder)
    return folder


def failures(checkpoint: Path, out: Path) -> list[Row]:
    with pytest.raises(GateError) as caught:
        export_model(ExportOptions(str(checkpoint), out, quantize="fp32"))
    assert caught.value.report is not None
    return [row for row in caught.value.report.rows if not row.passed]


@pytest.mark.parametrize(
    ("plant", "where"),
    [PLANTS[3][1:], *(pytest.param(*PLANTS[i][1:], marks=pytest.mark.heavy) for i in (0, 1, 4, 5, 6))],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_an_export_with_it_fails(
    checkpoint: Path, plant: Plant, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference and engines share the fault, so that nothing else would show it."""
    plant(monkeypatch)
    assert failures(checkpoint, tmp_path / "out")[0].where == where


def test_a_graph_without_the_levels_is_caught(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OnnxOps.split

    def without(ops: OnnxOps, x: Any, *widths: int) -> Any:
        first, *levels = real(ops, x, *widths)
        return [first, *(ops.mul(level, 0.0) for level in levels)]

    monkeypatch.setattr(OnnxOps, "split", without)
    with pytest.raises(GateError) as caught:
        export_model(ExportOptions(str(checkpoint), tmp_path / "out", quantize="fp32"))
    assert caught.value.report is not None
    assert caught.value.report.failures()[0].check == "prefill logits, cosine"
    found = next(row for row in caught.value.report.rows if row.check == "first layer that differs")
    assert found.where == "decoder.layers.1.norm1"  # what reads the sum behind the first layer


def test_the_recordings_are_as_transformers_says() -> None:
    spec = importlib.util.spec_from_file_location("make_places", TESTS / "vectors" / "make_places.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.SHIPPED.read_text("utf-8") == module.text()
