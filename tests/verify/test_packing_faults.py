"""Faults planted in how features are packed: the gate of an export finds each and names it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import linked

from edgevlm.errors import GateError
from edgevlm.export import pipeline
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.inputs.packing import Framed, Packed, Packing
from edgevlm.inputs.spec import ImageSpec
from edgevlm.verify.packing import check_packing
from edgevlm.verify.report import Row


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packing") / "checkpoint"
    linked.build(folder, kind="llava_onevision", text="qwen2", tower="siglip", layers=-1)
    return folder


def failures(checkpoint: Path, out: Path) -> list[Row]:
    with pytest.raises(GateError) as caught:
        export_model(ExportOptions(str(checkpoint), out, quantize="fp32"))
    assert caught.value.report is not None
    return list(caught.value.report.failures())


def test_a_missing_newline_is_caught_and_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pipeline.with_newline

    def without(*arguments: object) -> ImageSpec:
        spec = real(*arguments)  # type: ignore[arg-type]
        assert spec.packing is not None
        return replace(spec, packing=replace(spec.packing, newline=(0.0,) * len(spec.packing.newline)))

    monkeypatch.setattr(pipeline, "with_newline", without)
    first = failures(checkpoint, tmp_path / "out")[0]
    assert (first.check, first.where) == (
        "image rules that differ from the original's",
        "preprocess.json: packing.newline",
    )


def test_rows_without_their_newline_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Packed.run

    def without(packed: Packed, features: list[np.ndarray]) -> np.ndarray:  # type: ignore[type-arg]
        rows = real(packed, features)
        return rows[~np.isin(rows[:, 0], packed.newline)]

    monkeypatch.setattr(Packed, "run", without)
    row = check_packing(Packing())
    assert not row.passed and row.note.endswith("newline missing")


def test_a_frame_in_another_order_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_packing(Packing(framed=True)).passed
    real = Framed.run
    monkeypatch.setattr(Framed, "run", lambda packed, features: np.roll(real(packed, features), 1, axis=0))
    row = check_packing(Packing(framed=True))
    assert not row.passed and row.note.endswith("other rows, or in another order")


def test_swapped_rows_are_caught_and_named(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Packed.run

    def swapped(packed: Packed, features: list[np.ndarray]) -> np.ndarray:  # type: ignore[type-arg]
        rows, whole = real(packed, features), packed.side[0] * packed.side[1]
        lines = rows[whole:].reshape(-1, packed.map[1] + 1, rows.shape[1]) if packed.views > 1 else rows[None, whole:]
        return np.concatenate([rows[:whole], lines[::-1].reshape(-1, rows.shape[1])])

    monkeypatch.setattr(Packed, "run", swapped)
    found = failures(checkpoint, tmp_path / "out")
    row = next(row for row in found if row.check.startswith("sizes whose features are packed"))
    assert row.note.endswith("rows in another order") and row.where.startswith("packing of ")
