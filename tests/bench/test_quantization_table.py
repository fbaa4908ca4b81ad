"""bench/quantization_table.py: its arithmetic, and that it goes on where it was stopped."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quantization_table", ROOT / "bench" / "quantization_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_recovered_is_a_share_of_what_rounding_lost(script: ModuleType) -> None:
    assert script.recovered({"fp32": 0.1, "int4-rtn": 0.5, "int4-calibrated": 0.2}) == pytest.approx(0.75)
    assert script.recovered({"fp32": 0.0, "int4-rtn": 0.5, "int4-calibrated": 0.6}) == pytest.approx(-0.2)
    assert script.recovered({"fp32": 0.0, "int4-rtn": 0.5}) is None
    assert script.recovered({"fp32": 0.5, "int4-rtn": 0.5, "int4-calibrated": 0.1}) is None


def cell(row: str, kl: float) -> dict[str, Any]:
    return {
        "row": row,
        "runtime": "coreml",
        "engine": "CPU (evaluator in numpy)",
        "bytes": 1_500_000,
        "score": {"score": 0.5, "low": 0.4, "high": 0.6, "questions": 80},
        "kl": kl,
        "agreement": 0.975,
        "positions": 40,
        "warm": {"preprocess": 0.01, "encode": 0.2, "prefill": 0.03, "decode": 0.004},
        "image_tokens": 64,
        "peak_memory": None,
    }


def test_the_table_in_markdown(script: ModuleType) -> None:
    cells = {row: cell(row, kl) for row, kl in (("fp32", 0.0), ("int4-rtn", 0.2), ("int4-calibrated", 0.05))}
    text = script.markdown(
        {"model": "m", "device": {"cpu": "A chip", "load": 0.1}, "missing": ["mixed: no"], "cells": cells}
    )
    assert "| int4-rtn | 1.5 MB | 50.0% (40% to 60%) | 0.2 | 97.5% | 10.0 ms | 200 ms | 30.0 ms | 4.0 ms | ? |" in text
    assert "recovers 75% of what rounding" in text and "they say nothing of a device" in text and "- mixed: no" in text
    lines = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert len(set(lines)) == 1, "every row has as many cells as the head"


@pytest.mark.heavy
def test_it_measures_once_and_goes_on(
    script: ModuleType, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table"
    words = [str(tiny_checkpoint), "--out", str(out), "--targets", "onnx", "--rows", "fp32,int4-rtn", "--threads", "1",
             "--questions", "3", "--pictures", "1", "--tokens", "3", "--tiles", "1", "--repeat", "1"]  # fmt: skip
    script.main(words)
    first = capsys.readouterr()
    table = json.loads((out / "table.json").read_text())
    assert list(table["cells"]) == ["fp32 on onnxruntime", "int4-rtn on onnxruntime"] and table["missing"] == []
    exact, rough = table["cells"].values()
    assert exact["kl"] < 1e-6 < rough["kl"] and exact["agreement"] == 1.0 and rough["bytes"] < exact["bytes"]
    assert exact["score"]["questions"] == 3 and exact["positions"] == rough["positions"] > 2
    assert (out / "table.md").read_text() == first.out
    (out / "int4-rtn.onnxruntime.fidelity.json").unlink()
    script.main(words)
    again = capsys.readouterr()
    assert again.out.splitlines()[4:] == first.out.splitlines()[4:], "all but the line with the machine's load"
    assert [line for line in again.err.splitlines() if line.endswith(" ...")] == [
        "int4-rtn.onnxruntime.fidelity ...",
        "the original's answers ...",
    ]
    os.utime(out / "bundles" / "fp32" / "manifest.json")  # as after another export
    script.main(words)
    made = [line.removesuffix(" ...") for line in capsys.readouterr().err.splitlines() if line.endswith(" ...")]
    assert sorted(made) == [
        "fp32.onnxruntime.fidelity",
        "fp32.onnxruntime.score",
        "onnxruntime.bench",
        "the original's answers",
    ]
    with pytest.raises(SystemExit, match="holds figures of other settings"):
        script.main([*words, "--tokens", "4"])


def test_what_cannot_be_made_is_said(
    script: ModuleType, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(script.ROWS, "fp16", ["--quantize", "fp16", "--no-such-flag"])
    words = ["--rows", "fp16,mixed", "--targets", "onnx"]
    args = ["--out", str(tmp_path / "t"), str(tiny_checkpoint), *words]
    with pytest.raises(SystemExit, match="No row could be exported"):
        script.main(args)
    with pytest.raises(SystemExit):
        script.main([*args, "--rows", "int3"])
