"""Faults planted in what positions see: each fails the gate, which names the first layer or operation that departs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import gemma3

from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.inputs.layout import Layout, decoder_inputs, visible
from edgevlm.models.spec import Decoder
from edgevlm.runtimes.coreml import runtime as coreml
from edgevlm.runtimes.llama import decoder as llama
from edgevlm.runtimes.ort import states
from edgevlm.verify.gate import run_gate

Inputs = dict[str, np.ndarray[Any, Any]]


def shifted(d: Decoder, layout: Layout, past: int, new: int) -> Inputs:
    """A window that shows one position more."""
    return decoder_inputs(d, layout, past, new) | {"mask_8": visible(layout, d.mask, past, new, 9)}


def dropped(d: Decoder, layout: Layout, past: int, new: int) -> Inputs:
    """Pictures under the causal mask."""
    masks = {"mask": visible(layout, "causal", past, new), "mask_8": visible(layout, "causal", past, new, 8)}
    return decoder_inputs(d, layout, past, new) | masks


FAULTS = {"window mask shifted by one": shifted, "image block mask dropped": dropped}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    place, made = tmp_path_factory.mktemp("faults"), dict[str, Bundle]()
    gemma3.build(place / "model")

    def export(target: str) -> Bundle:
        if target not in made:
            targets = tuple(dict.fromkeys(("onnx", target)))
            options = ExportOptions(str(place / "model"), place / target, targets, quantize="fp32", gate=False)
            made[target] = open_bundle(export_model(options).folder)
        return made[target]

    return export


@pytest.mark.parametrize("fault", FAULTS)
def test_onnx(exported: Callable[[str], Bundle], fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "decoder_inputs", FAULTS[fault])
    found = run_gate(exported("onnx")).first_failure()
    assert found.startswith("onnx, prefill logits") and found.endswith("first at decoder.layers.0.attention")


@pytest.mark.heavy
@pytest.mark.parametrize("fault", FAULTS)
def test_coreml(exported: Callable[[str], Bundle], fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("coremltools")
    monkeypatch.setattr(coreml, "decoder_inputs", FAULTS[fault])
    found = run_gate(exported("coreml")).first_failure()
    assert found.startswith("coreml, prefill logits") and found.endswith("first at decoder.layers.0.attention")


@pytest.mark.heavy
def test_llama(exported: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp is told which parts of a prompt see themselves; its windows are its own."""
    pytest.importorskip("llama_cpp")

    def causal(*arguments: Any) -> Iterator[tuple[int, int, bool]]:
        yield from ((start, end, False) for start, end, _ in real(*arguments))

    real = llama.runs
    monkeypatch.setattr(llama, "runs", causal)
    assert run_gate(exported("gguf")).first_failure().startswith("gguf, prefill logits")


@pytest.mark.heavy
@pytest.mark.parametrize("target", ["onnx", "coreml", "gguf"])
def test_no_fault(exported: Callable[[str], Bundle], target: str) -> None:
    assert run_gate(exported(target)).passed
