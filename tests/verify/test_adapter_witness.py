"""The gate on merged adapters: peft agrees with a right merge, and planted faults are found, with peft and without."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import internvl, llava15, nanovlm, qwen2_5_vl

from edgevlm.checkpoint.adapter import LoraAdapter
from edgevlm.checkpoint.adapter_config import AdapterConfig
from edgevlm.checkpoint.opening import open_model
from edgevlm.errors import GateError
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.export.source import read_adapter
from edgevlm.verify import adapter as witness
from edgevlm.verify.adapter import PeftFailed, PeftTensor, ask_peft, check_adapter, recorded_tensors
from edgevlm.verify.peft_merge import peft_merge
from edgevlm.verify.report import Row


@torch.no_grad()
def adapt(model: Any, out: Path, **options: Any) -> None:
    torch.manual_seed(5)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 12, **options}))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn(parameter.shape))
    adapted.save_pretrained(out)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """peft's process takes seconds to start: but for one test, its work is done here."""

    def ask(model: Path, adapter: Path) -> tuple[str, Iterator[PeftTensor]]:
        def tensors() -> Iterator[PeftTensor]:
            try:
                yield from peft_merge(model, adapter)
            except LookupError as reason:
                raise PeftFailed(str(reason)) from None

        return peft.__version__, tensors()

    monkeypatch.setattr(witness, "ask_peft", ask)


def without_peft(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(witness, "_NEEDS", ("no_such_package",))
    patch.setattr(witness, "ask_peft", ask_peft)


def judge(place: Path) -> Row:
    merged = read_adapter(open_model(str(place / "model"), adapter=place / "adapter"))
    assert merged is not None
    return check_adapter(merged)


BASE = {"target_modules": ["q_proj", "down_proj", "lm_head"], "alpha_pattern": {"q_proj": 5}}
ADAPTERS: dict[str, dict[str, Any]] = {
    "LoRA": {**BASE, "r": 128},  # as wide as the decoder, so that A and B have one shape
    "rsLoRA": {**BASE, "use_rslora": True},
    "DoRA": {**BASE, "use_dora": True},
    "own head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A LLaVA in the layout of transformers 4 and one of `ADAPTERS`, made once."""
    root = tmp_path_factory.mktemp("witness")

    def make(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            adapt(llava15.build(folder / "model", layout="hub"), folder / "adapter", **ADAPTERS[name])
        return folder

    return make


@pytest.mark.parametrize("name", ADAPTERS)
def test_peft_agrees(place: Callable[[str], Path], name: str) -> None:
    row = judge(place(name))
    assert row.passed and row.measured == 0 and row.note.endswith(f"tensors by peft {peft.__version__}")


def test_recorded_merges_agree(place: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    without_peft(monkeypatch)
    row = judge(place("LoRA"))
    assert row.passed and row.note.startswith("no_such_package is not installed: 25 tensors that peft ")


Patch = pytest.MonkeyPatch
update, updated, match, scale = LoraAdapter._update, LoraAdapter._updated, LoraAdapter._match, AdapterConfig.scale


def wrong_scale(patch: Patch) -> None:
    patch.setattr(AdapterConfig, "scale", lambda self, path: 1.001 * scale(self, path))


def swapped(patch: Patch) -> None:
    def fault(self: Any, *args: Any) -> Any:
        made = update(self, *args)
        shapes = [self._file.tensors[name].shape for name in (made.a, made.b)]
        square = shapes[0] == shapes[1] and len(shapes[0]) == 2
        return dataclasses.replace(made, a=made.b, b=made.a) if square else made

    patch.setattr(LoraAdapter, "_update", fault)


def head_left_out(patch: Patch) -> None:
    def fault(self: Any) -> Any:
        own = match(self)
        for changes in (self._updates, self._replaced):
            changes.pop(self._base.head, None)
        return own - {self._base.head}

    patch.setattr(LoraAdapter, "_match", fault)


def wrong_alpha(patch: Patch) -> None:
    """Of the patterns, none is read."""
    patch.setattr(
        AdapterConfig, "scale", lambda self, path: scale(dataclasses.replace(self, alpha=lambda _: 12.0), path)
    )


def rslora_ignored(patch: Patch) -> None:
    patch.setattr(AdapterConfig, "scale", lambda self, path: scale(dataclasses.replace(self, rslora=False), path))


def dora_axis(patch: Patch) -> None:
    def fault(self: Any, tensor: Any, made: Any) -> Any:
        if made.magnitude is None or tensor.ndim != 2:
            return updated(self, tensor, made)
        plain = updated(self, tensor, dataclasses.replace(made, magnitude=None))
        norms = np.resize(np.linalg.norm(plain, axis=0), len(plain))
        return plain * (self._file.read(made.magnitude) / norms)[:, None]

    patch.setattr(LoraAdapter, "_updated", fault)


def another_layer(patch: Patch) -> None:
    def fault(self: Any) -> Any:
        own = match(self)
        names = [name for name in self._updates if ".0.self_attn.q_proj" in name and "vision" not in name]
        for name in names:
            other = name.replace(".0.", ".1.")
            self._updates[name], self._updates[other] = self._updates[other], self._updates[name]
        return own

    patch.setattr(LoraAdapter, "_match", fault)


def nothing_merged(patch: Patch) -> None:
    patch.setattr(LoraAdapter, "_updated", lambda self, tensor, made: tensor)


FAULTS = {
    wrong_scale: "LoRA", swapped: "LoRA", head_left_out: "LoRA", wrong_alpha: "LoRA", another_layer: "LoRA",
    nothing_merged: "LoRA", rslora_ignored: "rsLoRA", dora_axis: "DoRA",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("installed", [True, False], ids=["peft", "records"])
def test_planted_faults_are_found(
    place: Callable[[str], Path], monkeypatch: Patch, fault: Callable[[Patch], None], installed: bool
) -> None:
    folder = place(FAULTS[fault])
    if not installed:
        without_peft(monkeypatch)
    assert judge(folder).passed
    fault(monkeypatch)
    row = judge(folder)
    assert not row.passed and row.measured > 0 and row.where and "first: " in row.note
    if fault is head_left_out and installed:
        assert row.where == "language_model.lm_head.weight"


def test_a_trained_head_that_is_left_out(place: Callable[[str], Path], monkeypatch: Patch) -> None:
    head_left_out(monkeypatch)
    row = judge(place("own head"))
    assert row.measured == 1 and row.where == "language_model.lm_head.weight"


def tied(self: LoraAdapter, own: set[str]) -> None:
    """The fault that a trained embedding is the head, too."""
    if self._base.embed in own:
        self._replaced[self._base.head] = self._replaced[self._base.embed]


@pytest.mark.heavy
def test_a_tied_head_that_follows_its_embedding_fails_the_export(tmp_path: Path, monkeypatch: Patch) -> None:
    """A trained embedding of a tied model: peft leaves the head as it was. Engine and reference agree on any merge."""
    model = qwen2_5_vl.build(tmp_path / "model", layout="memory", tie=True)
    adapt(model, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    assert judge(tmp_path).passed
    monkeypatch.setattr(LoraAdapter, "_untie", tied)
    monkeypatch.setattr(witness, "ask_peft", ask_peft)
    options = ExportOptions(
        str(tmp_path / "model"), tmp_path / "bundle", quantize="fp32", adapter=str(tmp_path / "adapter")
    )
    with pytest.raises(GateError) as caught:
        export_model(options)
    assert [row.target for row in caught.value.report.rows if not row.passed] == ["adapter"]
    assert "lm_head" in str(caught.value)
    without_peft(monkeypatch)
    assert judge(tmp_path).where == "own embedding of a tied model: language_model.lm_head.weight"


@pytest.mark.parametrize("family", ["nanovlm", "internvl_chat"])
def test_families_without_a_class(family: str, tmp_path: Path, monkeypatch: Patch) -> None:
    """peft's layers stand under the adapter's own names."""
    if family == "nanovlm":
        nanovlm.build(tmp_path / "model")
        names, table = ["decoder.blocks.0.attn.q_proj", "vision_encoder.blocks.1.attn.qkv_proj"], "decoder.head"
    else:
        internvl.build(tmp_path / "model", layout="remote")
        names, table = ["language_model.model.layers.1.mlp.up_proj", "mlp1.1"], "language_model.lm_head"
    base = open_model(str(tmp_path / "model"))
    root = torch.nn.Module()
    for name in (*names, table):
        at = root
        for part in name.split(".")[:-1]:
            if part not in dict(at.named_children()):
                at.add_module(part, torch.nn.Module())
            at = at.get_submodule(part)
        rows, columns = base.shape(f"{name}.weight")
        at.add_module(name.rpartition(".")[2], torch.nn.Linear(columns, rows, bias=False))
    adapt(root, tmp_path / "adapter", target_modules=names, modules_to_save=[table.rpartition(".")[2]], use_dora=True)
    row = judge(tmp_path)
    assert row.passed and row.note.startswith("3 tensors by peft"), row
    wrong_scale(monkeypatch)
    assert judge(tmp_path).measured == 2


def test_an_adapter_of_the_decoder_alone(tmp_path: Path, monkeypatch: Patch) -> None:
    """peft has no place for it in the whole model, but has layers for it."""
    model = llava15.build(tmp_path / "model", layout="hub")
    decoder = torch.nn.Module()
    decoder.model = model.model.language_model
    adapt(decoder, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    row = judge(tmp_path)
    assert row.passed and row.note.startswith("4 tensors by peft"), row
    wrong_scale(monkeypatch)
    assert judge(tmp_path).measured == 4


@pytest.mark.parametrize("shapes", [{"a": [2, 3], "b": [5]}, {"c": [4, 1, 2]}])
def test_recorded_numbers_are_the_documented_ones(shapes: dict[str, list[int]]) -> None:
    at = 7 << 20
    for tensor in recorded_tensors(shapes, 7).values():
        for value in tensor.flatten().tolist():
            assert value == ((at * 2654435761 % 2**32) >> 8) / 2**24 - 0.5
            at += 1


def test_the_records_are_what_peft_says() -> None:
    """assets/merges.json is what tests/vectors/make_merges.py writes with the peft that is installed."""
    path = Path(__file__).parents[1] / "vectors" / "make_merges.py"
    spec = importlib.util.spec_from_file_location("vectors_make_merges", path)
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    theirs, ours = json.loads(made.make())["cases"], json.loads(made.OUT.read_text("utf-8"))["cases"]
    for fresh, stored in zip(theirs, ours, strict=True):
        merged, kept = fresh.pop("merged"), stored.pop("merged")
        assert fresh == stored and merged.keys() == kept.keys()
        for name in merged:
            np.testing.assert_allclose(kept[name], merged[name], rtol=1e-5, atol=1e-6)


def test_a_process_that_dies_leaves_the_records(place: Callable[[str], Path], monkeypatch: Patch) -> None:
    """Whatever peft does, an export goes on with what was recorded, and says so."""
    monkeypatch.setattr(witness, "ask_peft", ask_peft)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    row = judge(place("LoRA"))
    assert row.passed and row.note.startswith("peft's process ended with code 1: 25 tensors that peft")
