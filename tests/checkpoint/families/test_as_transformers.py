"""Every family and layout, read from a tiny checkpoint, against transformers: features, and 64 greedy tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from cases import heavy_but
from PIL import Image

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_model
from edgevlm.checkpoint.families.tensors import MappedWeights
from edgevlm.inputs.layout import Layout, Span, merge
from edgevlm.models.model import ModelSpec
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.runtimes.eager import EagerDecoder, encode_view
from edgevlm.types import F32, I64

sys.path.insert(0, str(Path(__file__).parents[2]))
from tiny import deepseek_vl, gemma3, internvl, llava15, nanovlm, qwen2_5_vl
from tiny.common import Answer, ask, picture

QUESTION = "What is in the picture?"
PICTURES: dict[str, list[Image.Image]] = {
    "none": [],
    "one": [picture(50, 70)],
    "several": [picture(100, 33, 1), picture(64, 64, 2), picture(31, 90, 3)],
}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "qwen2_5_vl-hub": (qwen2_5_vl, {}),
    "qwen2_5_vl-hub-tied": (qwen2_5_vl, {"tie": True}),
    "qwen2_5_vl-saved": (qwen2_5_vl, {"layout": "saved"}),
    "qwen2_5_vl-memory": (qwen2_5_vl, {"layout": "memory"}),
    "internvl-hub": (internvl, {}),
    "internvl-saved": (internvl, {"layout": "saved"}),
    "internvl-memory": (internvl, {"layout": "memory"}),
    "internvl-remote": (internvl, {"layout": "remote"}),
    "internvl-hub-qwen3": (internvl, {"decoder": "qwen3"}),
    "internvl-saved-qwen3": (internvl, {"decoder": "qwen3", "layout": "saved"}),
    "internvl-remote-qwen3": (internvl, {"decoder": "qwen3", "layout": "remote"}),
    "llava15-hub": (llava15, {}),
    "llava15-saved": (llava15, {"layout": "saved"}),
    "llava15-memory": (llava15, {"layout": "memory"}),
    "deepseek_vl-hub": (deepseek_vl, {}),
    "deepseek_vl-saved": (deepseek_vl, {"layout": "saved"}),
    "deepseek_vl-memory": (deepseek_vl, {"layout": "memory"}),
    "gemma3-hub": (gemma3, {}),
    "gemma3-saved": (gemma3, {"layout": "saved"}),
    "nanovlm": (nanovlm, {}),
    "nanovlm-untied": (nanovlm, {"tie": False}),
}


class Built(NamedTuple):
    model: Any
    processor: Any
    spec: ModelSpec
    weights: MappedWeights


_BUILT: dict[str, Built] = {}


@pytest.fixture(params=heavy_but([name for name in CASES if name.endswith(("hub", "remote", "nanovlm"))], CASES))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Each case, built once."""
    if request.param not in _BUILT:
        (module, options), folder = CASES[request.param], tmp_path_factory.mktemp("tiny") / request.param
        model = module.build(folder, **options)
        _BUILT[request.param] = Built(model, module.load_processor(folder), *read_model(open_checkpoint(folder)))
    return _BUILT[request.param]


def views_of(spec: ModelSpec, answer: Answer) -> list[F32]:
    """The normalized views (3, H, W) that transformers' processor made."""
    if "pixel_values" not in answer.inputs:
        return []
    pixels = answer.inputs["pixel_values"]
    if not isinstance(spec.vision, QwenVit):
        return list(pixels.reshape(-1, *pixels.shape[-3:]))
    m, p, views, at = spec.vision.merge, spec.vision.patch_size, [], 0
    for frames, rows, cols in answer.inputs["image_grid_thw"]:
        assert frames == 1
        patches = pixels[at : at + rows * cols].reshape(rows // m, cols // m, m, m, 3, 2, p, p)
        at += rows * cols
        np.testing.assert_array_equal(patches[..., 0, :, :], patches[..., 1, :, :])  # a still picture is a frame twice
        views.append(patches[..., 0, :, :].transpose(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * p, cols * p))
    return views


def layout_of(spec: ModelSpec, ids: I64, views: list[F32]) -> Layout:
    """The views' tokens, in order, where transformers' processor put image tokens."""
    places, spans = list(np.flatnonzero(ids == spec.image_token_id)), []
    for view in views:
        spans.append(Span(int(places[0]), spec.token_grid(*view.shape[1:])))
        own, places = places[: spans[-1].tokens], places[spans[-1].tokens :]
        assert own == list(range(own[0], own[0] + spans[-1].tokens))
    assert not places
    return Layout(len(ids), tuple(spans))


@pytest.mark.parametrize("pictures", heavy_but(["several"], PICTURES))
def test_features_and_tokens_are_transformers(built: Built, pictures: str) -> None:
    model, processor, spec, weights = built
    answer = ask(model, processor, PICTURES[pictures], QUESTION)
    ids, views = np.array(answer.input_ids, np.int64), views_of(spec, answer)
    engine, layout = EagerDecoder(spec.decoder, weights), layout_of(spec, ids, views)
    by_view = [encode_view(spec, weights, view) for view in views]
    if views:
        features = np.concatenate(by_view)
        assert answer.features is not None and features.shape == answer.features.shape
        norms = np.linalg.norm(features, axis=1) * np.linalg.norm(answer.features, axis=1)
        assert ((features * answer.features).sum(1) / norms).min() >= 0.99999
    logits, tokens = engine.forward(merge(engine.embed(ids), layout, by_view), layout), []
    np.testing.assert_allclose(logits, answer.logits[-1], atol=1e-4 * float(np.abs(answer.logits).max()))
    for _ in answer.tokens:
        tokens.append(int(logits.argmax()))
        logits = engine.step(tokens[-1])
    assert tokens == answer.tokens


def test_roles_are_those_of_the_operations(built: Built) -> None:
    """Matrices and the embedding are quantized; norms, biases, positions, tokens and patch kernels are not."""
    for name, info in built.weights.tree.items():
        assert built.weights.is_linear(name) == info.is_linear
        kept = "norm" in name or name.endswith(".bias") or name.startswith(("vision.patch", "vision.position"))
        assert info.is_linear == (not kept and name != "vision.class_token"), name
        assert built.weights.read(name).shape == info.shape
