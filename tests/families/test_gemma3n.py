"""Gemma 3n: streams of states, gates of which few values count, per-layer embeddings, a token embedded as pictures."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import gemma3n

sys.path.insert(0, str(Path(__file__).parent))
from harness import (
    PICTURES,
    QUESTION,
    SIZES,
    Checkpoint,
    FamilyTests,
    Variant,
    check_features,
    check_tokens,
)

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_image_spec, read_model
from edgevlm.errors import EdgeVLMError, GateError
from edgevlm.export.gguf_.archs import text_arch
from edgevlm.export.onnx_.ops import OnnxOps
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.export.survey import survey
from edgevlm.generate.loop import Pipeline
from edgevlm.models.spec import Attention
from edgevlm.runtimes import open_runtime
from edgevlm.types import F32


def views(inputs: dict[str, Any]) -> list[F32]:
    """(pictures, 3, S, S)."""
    return list(inputs["pixel_values"])


def _variant(name: str, **options: Any) -> Variant:
    return Variant(name, partial(gemma3n.build, **options), gemma3n.load_processor, views, sizes=(*SIZES, *LONG))


LONG = [(1, 40), (600, 3), (4100, 60)]
# The numbers that are constants of llama.cpp.
PUBLISHED: dict[str, Any] = {
    "num_hidden_layers": 25, "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 5, "laurel_rank": 64,
    "num_kv_shared_layers": 5, "intermediate_size": 2048, "hidden_size_per_layer_input": 256,
    "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 15, "final_logit_softcapping": 30.0,
}  # fmt: skip


@pytest.mark.heavy
class TestGemma3nWithPublishedNumbers(FamilyTests):
    """As many layers as llama.cpp counts, of every kind."""

    variants: ClassVar = {"published": _variant("published", **PUBLISHED)}
    engines: ClassVar = {"onnx": 64, "gguf": 64, "coreml": 32}


@pytest.mark.heavy
class TestGemma3nOfPublishedWidth:
    """As wide as its tower's states, as llama.cpp takes every such model to be: then its pair of files is whole."""

    @pytest.fixture(scope="class")
    def made(self, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
        return Checkpoint(_variant("wide", **PUBLISHED, hidden_size=2048), tmp_path_factory.mktemp("wide"))

    def test_llama_cpp_encodes_and_answers(self, made: Checkpoint) -> None:
        found = survey(open_checkpoint(str(made.folder))).targets["gguf"]
        assert (found.refusal, found.no_pictures) == (None, None)
        check_tokens(made, "several", "gguf", 64)


LAYOUTS = {name: _variant(name, layout=name) for name in ("hub", "saved", "memory")}
LAYOUTS["bfloat16"] = _variant("bfloat16", dtype="bfloat16")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(LAYOUTS["hub"], tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=LAYOUTS)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(LAYOUTS[request.param], tmp_path_factory.mktemp(request.param))


@pytest.mark.heavy
def test_every_layout(other: Checkpoint) -> None:
    check_features(other, "several")
    check_tokens(other, "several", "onnx", 64)
    with pytest.raises(EdgeVLMError, match=r"than the constants of llama\.cpp, 4, 64 and 256"):
        text_arch(other.spec.decoder)


@pytest.mark.heavy
def test_a_token_behind_a_picture_is_embedded_as_pictures(tiny: Checkpoint) -> None:
    """The others by the decoder's table; those that the second table lacks take its first row."""
    model, (end,) = tiny.model, tiny.spec.markers
    assert end == model.config.eoi_token_id
    said = tiny.answer("one")
    bundle = tiny.bundle("fp32")
    prompt = Pipeline(bundle, open_runtime(bundle, "eager")).prepare(PICTURES["one"], QUESTION)
    (marker,) = prompt.layout.markers
    assert said.input_ids[marker.start] == end
    place = model.model.embed_vision
    expected = place(input_ids=model.lm_head.weight.new_tensor([end], dtype=int))[0].detach().numpy()
    np.testing.assert_allclose(marker.row, expected, rtol=1e-5, atol=1e-6)
    table = read_model(open_checkpoint(str(tiny.folder)))[1].read("decoder.per_layer_embed.weight")
    theirs = model.model.language_model.embed_tokens_per_layer.weight.detach().numpy()
    assert end == len(theirs) < len(table)
    np.testing.assert_array_equal(table[: len(theirs)], theirs)
    np.testing.assert_array_equal(table[end:], np.repeat(theirs[:1], len(table) - end, axis=0))


def test_layers_are_of_their_kinds(tiny: Checkpoint) -> None:
    blocks = [tiny.spec.decoder.block(layer) for layer in range(6)]
    mixers = [mixer for block in blocks for mixer in block.mixers if isinstance(mixer, Attention)]
    assert [mixer.reads for mixer in mixers] == ["self"] * 3 + ["earlier"] * 3
    assert [block.mlp.cutoff for block in blocks] == [
        pytest.approx(1.6448536),
        pytest.approx(1.6448536),
        0.0,
        *[None] * 3,
    ]
    assert tiny.spec.decoder.streams == 4 and blocks[0].laurel == 32


def _all_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxOps, "above", lambda ops, x, *others: x)


def _stream_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    real = OnnxOps.split

    def without(ops: OnnxOps, x: Any, *widths: int) -> Any:
        parts = real(ops, x, *widths)
        return [*parts[:-1], ops.mul(parts[-1], 0.0)] if widths == (1,) * 16 else parts

    monkeypatch.setattr(OnnxOps, "split", without)


def _map_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    real = OnnxOps.linear

    def without(ops: OnnxOps, x: Any, *maps: tuple[str, int], bias: bool = False) -> Any:
        found = real(ops, x, *maps, bias=bias)
        return [ops.mul(found[0], 0.0)] if maps[0][0].endswith("laurel_out") else found

    monkeypatch.setattr(OnnxOps, "linear", without)


@pytest.mark.parametrize(
    ("plant", "where"),
    [
        pytest.param(_all_values, "decoder.layers.0.norm2_after", marks=pytest.mark.heavy),
        pytest.param(_stream_dropped, "decoder.layers.1.norm1", marks=pytest.mark.heavy),
        pytest.param(_map_dropped, "decoder.layers.0.norm2", marks=pytest.mark.heavy),
    ],
    ids=["all values of gates", "a stream dropped", "a map dropped"],
)
def test_a_fault_in_a_graph_is_named(
    tiny: Checkpoint, plant: Callable[[pytest.MonkeyPatch], None], where: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    plant(monkeypatch)
    with pytest.raises(GateError) as caught:
        export_model(ExportOptions(str(tiny.folder), tmp_path / "out", quantize="fp32"))
    assert caught.value.report is not None
    assert caught.value.report.failures()[0].check == "prefill logits, cosine"
    assert next(row for row in caught.value.report.rows if row.check == "first layer that differs").where == where


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"text_config": {"altup_active_idx": 1}}, "altup_active_idx = 1, expected 0"),
        ("config.json", {"text_config": {"altup_correct_scale": False}}, "altup_correct_scale = False, expected true"),
        ("config.json", {"text_config": {"activation_sparsity_pattern": [0.9]}}, "expected 6 numbers from 0 to less"),
        ("config.json", {"text_config": {"intermediate_size": [160, 160]}}, "expected one number, or 6"),
        ("config.json", {"text_config": {"layer_types": ["full_attention"]}}, "expected 6 times 'sliding_attention'"),
        ("config.json", {"text_config": {"num_kv_shared_layers": 6}}, "of an earlier layer, and there is none"),
        ("config.json", {"text_config": {"vocab_size_per_layer_input": 500}}, "expected at most the 480 of vocab_size"),
        ("config.json", {"vision_soft_tokens_per_image": 64}, "expected the 256 states of the tower"),
        ("preprocessor_config.json", {"do_resize": False}, "do_resize = False, expected true"),
    ],
)
def test_what_it_does_not_take_is_refused(
    tiny: Checkpoint, tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(tiny.folder, tmp_path / "model")
    data = json.loads((folder / file).read_text())
    for key, value in change.items():
        data[key] = data[key] | value if isinstance(value, dict) else value
    (folder / file).write_text(json.dumps(data))
    with pytest.raises(EdgeVLMError, match=message):
        spec, _ = read_model(open_checkpoint(str(folder)))
        read_image_spec(folder, spec)
