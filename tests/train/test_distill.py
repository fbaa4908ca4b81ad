"""Distillation: losses against their definitions, the teacher's cache, and quantization-aware training end to end."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from cases import heavy_but
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from training_data import write_data

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_model
from edgevlm.errors import EdgeVLMError
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.export.quantize.recipe import Form, fit, make_recipe
from edgevlm.train import distill as module
from edgevlm.train import teacher as teaching
from edgevlm.train.collate import Items
from edgevlm.train.distill import compare, distill
from edgevlm.train.fake_quantize import round_weight, train_through
from edgevlm.train.models import open_source
from edgevlm.train.options import DistillOptions
from edgevlm.train.outputs import OutputChoice, Outputs, relations, run_model, top_kl, top_log_probs
from edgevlm.train.records import Records


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("distilling") / "data", 8)


@pytest.fixture(scope="module")
def teacher(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wider than the student, with the same tokenizer and the same number of image tokens."""
    folder: Path = builder.build_tiny(tmp_path_factory.mktemp("teacher") / "wide", seed=5, hidden_size=96)
    return folder


@pytest.fixture
def options(tiny_checkpoint: Path, teacher: Path, data: Path, tmp_path: Path) -> DistillOptions:
    return DistillOptions(
        str(tiny_checkpoint),
        data,
        tmp_path / "out",
        teacher=str(teacher),
        cache=tmp_path / "cache",
        steps=3,
        batch=4,
        learning_rate=1e-3,
        max_tiles=1,
        save_every=2,
        cpu=True,
    )


def quiet(options: DistillOptions) -> Path:
    torch.set_num_threads(1)
    out = distill(options, lambda what, done, total: None, lambda text: None)
    assert out is not None
    return out


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_over_all_tokens_is_torchs(temperature: float) -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(5, 40) * 3, torch.randn(5, 40) * 3
    ids, logs = top_log_probs(theirs, temperature, 40)
    wanted = F.kl_div(
        (ours / temperature).log_softmax(-1), (theirs / temperature).log_softmax(-1), reduction="sum", log_target=True
    )
    assert float(top_kl(ours, ids, logs, temperature).sum()) == pytest.approx(float(wanted) * temperature**2, rel=2e-3)


def test_kl_of_the_likeliest_tokens_counts_the_others_as_one() -> None:
    torch.manual_seed(1)
    ours, theirs = torch.randn(6, 30), torch.randn(6, 30)
    ids, logs = top_log_probs(theirs, 1.0, 4)
    p, q = theirs.softmax(-1).gather(-1, ids.long()), ours.softmax(-1).gather(-1, ids.long())
    p, q = (torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1) for x in (p, q))
    assert float(top_kl(ours, ids, logs, 1.0).sum()) == pytest.approx(float((p * (p / q).log()).sum()), rel=2e-3)
    assert float(top_kl(theirs, ids, logs, 1.0).sum()) == pytest.approx(0, abs=2e-3)
    sharp = torch.full((1, 30), -40.0)
    sharp[0, 3] = 40.0
    ids, logs = top_log_probs(sharp, 1.0, 4)
    assert float(top_kl(sharp, ids, logs, 1.0).sum()) == pytest.approx(0, abs=1e-4)
    assert torch.isfinite(top_kl(-sharp, ids, logs, 1.0)).all()


def test_relations_are_cosines() -> None:
    states = torch.randn(2, 3, 8)
    wanted = F.cosine_similarity(states[1, 0], states[1, 2], dim=0)
    assert float(relations(states)[1, 0, 2]) == pytest.approx(float(wanted), abs=1e-6)


def test_outputs_stand_at_their_tokens(tiny_checkpoint: Path, data: Path) -> None:
    source = open_source(str(tiny_checkpoint))
    items = Items(Records(data), source.encoder(max_tiles=None))
    batch = source.collator()([items[0], items[5]])
    model = source.load().eval()
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "numbers")}
    with torch.no_grad():
        out = run_model(model, model, inputs, source.spec.image_token_id, OutputChoice(True, True, True), 16)
        plain = model(**{k: v for k, v in inputs.items() if k != "logits_to_keep"}).logits
    image = inputs["input_ids"] == source.spec.image_token_id
    assert out.visual is not None and out.relation is not None and out.features is not None
    torch.testing.assert_close(out.answers, plain[inputs["logits_to_keep"]], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.visual, plain[image], atol=1e-4, rtol=1e-4)
    tiles = int(image.sum()) // 16
    assert out.relation.shape == (tiles, 16, 16) and out.features.shape == (tiles, 16, 64)


@pytest.mark.heavy
def test_the_teacher_runs_once(options: DistillOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[int] = []
    real = teaching._cache_block

    def counted(*args: Any) -> None:
        blocks.append(args[4])
        real(*args)

    monkeypatch.setattr(teaching, "_cache_block", counted)
    monkeypatch.setattr(teaching, "BLOCK", 3)
    first = quiet(options)
    assert blocks == [0, 1, 2]
    assert (first / "model.safetensors").exists() and not list(first.glob("*.new"))
    (cache,) = list(options.cache.iterdir())  # type: ignore[union-attr]
    (cache / "000001.safetensors").unlink()  # as if the first run had been killed before it
    again = quiet(replace(options, out=options.out.with_name("again")))
    assert blocks == [0, 1, 2, 1]
    assert (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    quiet(replace(options, out=options.out.with_name("other"), temperature=1.0))
    assert blocks == [0, 1, 2, 1, 0, 1, 2]  # another temperature is another question


@pytest.mark.parametrize(
    "part", heavy_but(["features"], ["cross_entropy", "answer_kl", "visual_kl", "relation", "features"])
)
def test_each_part_of_the_loss_falls_when_it_is_trained(options: DistillOptions, part: str) -> None:
    alone = {"cross_entropy": 0.0, "answer_kl": 0.0} | {part: 1.0}
    out = quiet(replace(options, **alone, steps=12, batch=8, learning_rate=5e-3, save_every=100))  # type: ignore[arg-type]
    log = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    assert log[-1][f"loss_{part}"] < 0.9 * log[0][f"loss_{part}"]
    assert read_model(open_checkpoint(str(out)))[0].decoder.hidden_size == 64  # the map to the teacher's 96 is gone


def test_a_student_that_is_its_teacher_has_nothing_to_learn(options: DistillOptions) -> None:
    out = quiet(replace(options, teacher=options.model, cross_entropy=0.0, visual_kl=1.0, relation=1.0, top_k=512))
    first = json.loads((out / "training" / "log.jsonl").read_text().splitlines()[0])
    for name in ("answer_kl", "visual_kl", "relation"):
        assert first[f"loss_{name}"] == pytest.approx(0, abs=2e-3), name


@pytest.mark.heavy
def test_a_stopped_distillation_goes_on_with_the_same_weights(
    options: DistillOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(options, steps=5, features=1.0, quantize="int4")
    straight = quiet(replace(options, out=options.out.with_name("straight")))
    calls, real = [0], module.Distiller.training_step

    def killed(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(module.Distiller, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        quiet(options)
    resumed = quiet(options)
    assert (resumed / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()


@pytest.mark.parametrize("preset", heavy_but(["balanced"], ["balanced", "size"]))
def test_what_is_trained_quantized_is_what_ships(options: DistillOptions, tmp_path: Path, preset: str) -> None:
    out = quiet(replace(options, teacher=options.model, quantize="int4", preset=preset))
    source = open_source(str(out))
    assert source.checkpoint.dtype("model.connector.modality_projection.proj.weight") == "float32"
    spec, weights = read_model(source.checkpoint)
    recipe = fit(make_recipe("int4", preset), weights)
    model = source.load().eval()
    kinds = train_through(model, spec, weights, recipe)
    assert set(kinds.values()) == ({"int4", "int8"} if preset == "balanced" else {"int4"})
    from edgevlm.bundle.manifest import open_bundle
    from edgevlm.bundle.weights import ShippedWeights

    options_ = ExportOptions(str(out), tmp_path / "bundle", quantize="int4", preset=preset, gate=False)
    shipped = ShippedWeights(open_bundle(export_model(options_).folder))
    for name, kind in kinds.items():
        trained = round_weight(torch.from_numpy(weights.read(name)), kind).numpy()
        assert np.array_equal(trained, shipped.read(name)), name


def test_quantized_training_changes_what_the_model_computes(tiny_checkpoint: Path) -> None:
    source = open_source(str(tiny_checkpoint))
    spec, weights = read_model(source.checkpoint)
    ids = torch.arange(5, 25)[None]
    plain, rounded = source.load().eval(), source.load().eval()
    train_through(rounded, spec, weights, fit(make_recipe("int4", "size"), weights))
    reference = source.load().eval()
    with torch.no_grad():
        for name in weights.names():
            if name.startswith("decoder") and name.endswith("weight") and "norm" not in name:
                (stored,) = weights.stored_names(name)
                parameter = reference.get_parameter(stored)
                parameter.copy_(round_weight(parameter, "int4"))
        logits = [model(input_ids=ids).logits for model in (plain, rounded, reference)]
    assert not torch.allclose(logits[0], logits[1], atol=1e-2)
    torch.testing.assert_close(logits[1], logits[2], atol=1e-5, rtol=1e-5)


def test_a_question_counts_the_same_however_long_its_answer() -> None:
    """Answers of 1 and 3 tokens, as --per-question weighs them, are the mean of the two answers' own means."""
    torch.manual_seed(2)
    logits, theirs, labels = torch.randn(4, 20), torch.randn(4, 20), torch.tensor([3, 1, 4, 1])
    ids, logs = top_log_probs(theirs, 2.0, 20)

    def parts(rows: slice, weights: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        lesson = {"ids": ids[rows], "logs": logs[rows]}
        return compare(Outputs(logits[rows], None, None, None), lesson, labels[rows], 2.0, None, weights)

    together = parts(slice(4), torch.tensor([2.0, 2 / 3, 2 / 3, 2 / 3]))
    short, long = parts(slice(1)), parts(slice(1, 4))
    for name, value in together.items():
        assert float(value) == pytest.approx(float(short[name] + long[name]) / 2, rel=1e-4)


@pytest.mark.heavy
def test_models_that_cannot_be_compared_are_refused(
    options: DistillOptions, builder: ModuleType, tmp_path: Path
) -> None:
    other = builder.build_tiny(tmp_path / "other", vocab_size=520)
    with pytest.raises(EdgeVLMError, match=r"different vocabularies \(520 and 512 tokens"):
        quiet(replace(options, teacher=str(other)))
    fewer = builder.build_tiny(tmp_path / "fewer", scale_factor=4)
    with pytest.raises(EdgeVLMError, match=r"different numbers of image tokens .* leave out --relation"):
        quiet(replace(options, teacher=str(fewer), relation=1.0))
    quiet(replace(options, teacher=str(fewer), out=tmp_path / "answers"))  # these can be compared


def test_only_what_is_mirrored_is_trained_through(tiny_checkpoint: Path) -> None:
    source = open_source(str(tiny_checkpoint))
    spec, weights = read_model(source.checkpoint)
    recipe = replace(make_recipe("int4", "size"), decoder=Form("palette4"))
    with pytest.raises(EdgeVLMError, match="Training through palette4 is not available: choose from fp16, int8, int4"):
        train_through(source.load(), spec, weights, recipe)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cross_entropy": 0.0, "answer_kl": 0.0}, "weight 0: give at least one"),
        ({"relation": -1.0}, "--relation is -1.0"),
        ({"temperature": 0.0}, "--temperature should be more than 0"),
        ({"lora": 4, "quantize": "int4"}, "give one of the two"),
        ({"stage": "preference"}, "no preference stage"),
    ],
)
def test_options_are_checked_at_once(options: DistillOptions, change: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgeVLMError, match=message):
        replace(options, **change)


@pytest.mark.heavy
def test_a_changed_cache_is_noticed(options: DistillOptions) -> None:
    quiet(options)
    (cache,) = list(options.cache.iterdir())  # type: ignore[union-attr]
    lines = (options.data / "questions.jsonl").read_text().splitlines()
    changed = options.out.with_name("changed")
    shutil.copytree(options.data, changed)
    (changed / "questions.jsonl").write_text("\n".join(lines[1:]) + "\n")
    quiet(replace(options, data=changed, out=options.out.with_name("second")))
    assert len(list(options.cache.iterdir())) == 2 and cache.exists()  # type: ignore[union-attr]
