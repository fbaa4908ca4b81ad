"""Tiny checkpoints of every family, written as GGUF: llama.cpp's features and tokens against transformers'."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_model
from edgevlm.export.gguf_ import write_gguf
from edgevlm.export.quantize.recipe import make_recipe
from edgevlm.export.quantize.round import quantize
from edgevlm.inputs.layout import Layout, Span, merge
from edgevlm.inputs.rules import Stretch
from edgevlm.inputs.spec import Chat, ImageSpec, PictureText, PromptSpec, RoleText
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.eager import encode_view

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import internvl, lfm2_vl, llava15, nanovlm, qwen2_5_vl, qwen2_vl, qwen3_5, qwen3_vl
from tiny.common import ask, picture

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama-cpp-python is not installed (it compiles for minutes: `pip install llama-cpp-python==0.3.36`)",
)
CASES = {
    "qwen2_vl": (qwen2_vl, {}, "qwen2vl", "qwen2vl_merger"),
    "qwen3_vl": (qwen3_vl, {}, "qwen3vl", "qwen3vl_merger"),
    "qwen2_5_vl": (qwen2_5_vl, {}, "qwen2vl", None),  # windows of 32 pixels, llama.cpp's have 112 (test_gguf_archs.py)
    "internvl": (internvl, {}, "qwen2", "internvl"),
    "internvl-qwen3": (internvl, {"decoder": "qwen3", "layout": "remote"}, "qwen3", "internvl"),
    "qwen3_5": (qwen3_5, {}, "qwen35", "qwen3vl_merger"),
    "lfm2_vl": (lfm2_vl, {}, "lfm2", "lfm2"),
    "lfm2_vl-saved": (lfm2_vl, {"layout": "saved"}, "lfm2", "lfm2"),  # without the projector's norm
    "llava15": (llava15, {}, "llama", None),  # CLIP's class token: docs/gguf.md
    "nanovlm": (nanovlm, {}, "llama", None),  # it lacks the markers that llama.cpp puts around SmolVLM's pictures
}
PICTURES = [picture(100, 33, 1), picture(64, 64, 2), picture(131, 190, 3)]


@pytest.fixture(params=CASES)
def made(request, tmp_path):
    """A checkpoint, transformers' answer about pictures, and the runtime on the float32 files of it."""
    from edgevlm.runtimes.llama.runtime import open_runtime

    module, options, arch, projector = CASES[request.param]
    source = tmp_path / "source"
    model = module.build(source, **options)
    processor = module.load_processor(source)
    spec, weights = read_model(open_checkpoint(source))
    images = getattr(processor, "image_processor", SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3))
    mean, std = tuple(images.image_mean), tuple(images.image_std)
    image = ImageSpec(2, Stretch(64), "bicubic", (0, 0, 0), 1 / 255, mean, std, token_pixels=16)
    chat = Chat("", {"user": RoleText("", "", "")}, "")
    prompt = PromptSpec(2, chat, PictureText(), "<image>", spec.image_token_id, (2,), bos_id=1)
    entry = write_gguf(
        tmp_path / "gguf", spec, weights, make_recipe("fp32"), image, prompt, source / "tokenizer.json",
        lambda name: quantize(weights.read(name), "fp32", name),
    )  # fmt: skip
    assert (entry.architecture, entry.projector_type) == (arch, projector)
    manifest = SimpleNamespace(targets={"gguf": entry}, spec=spec, recipe={"decoder": {"kind": "fp32"}})
    bundle = SimpleNamespace(
        manifest=manifest, folder=tmp_path, image_spec=image, prompt_spec=prompt, path=lambda name: tmp_path / name
    )
    runtime = open_runtime(bundle, EngineOptions(threads=1))
    answer = ask(model, processor, PICTURES, "What is in the picture?")
    yield spec, weights, runtime, answer, image, projector is not None
    runtime.close()


def views_of(spec, answer):
    """The normalized views (3, H, W) that transformers' processor made."""
    pixels = answer.inputs["pixel_values"]
    if not isinstance(spec.vision, QwenVit):
        return list(pixels.reshape(-1, *pixels.shape[-3:]))
    if "spatial_shapes" in answer.inputs:
        return lfm2_vl.views(answer.inputs)
    m, p, views, at = spec.vision.merge, spec.vision.patch_size, [], 0
    for _, rows, cols in answer.inputs["image_grid_thw"]:
        patches = pixels[at : at + rows * cols].reshape(rows // m, cols // m, m, m, 3, 2, p, p)
        at += rows * cols
        views.append(patches[..., 0, :, :].transpose(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * p, cols * p))
    return views


def test_llama_cpp_answers_as_transformers(made):
    """Features where it has the tower; then, on features of float32, the logits and 64 greedy tokens."""
    spec, weights, runtime, answer, image, encodes = made
    ids, views = np.array(answer.input_ids, np.int64), views_of(spec, answer)
    if encodes:
        scale, shift = np.array(image.std)[:, None, None], np.array(image.mean)[:, None, None]
        taken = [np.rint((view * scale + shift) * 255).astype(np.uint8).transpose(1, 2, 0) for view in views]
        features = np.concatenate(runtime.encoder.encode(taken))
        norms = np.linalg.norm(features, axis=1) * np.linalg.norm(answer.features, axis=1)
        assert features.shape == answer.features.shape
        assert ((features * answer.features).sum(1) / norms).min() > 0.9999
    layout = layout_of(ids, spec, views)
    features = [encode_view(spec, weights, view) for view in views]
    decoder = runtime.decoder
    logits, tokens = decoder.forward(merge(decoder.embed(ids), layout, features), layout), []
    np.testing.assert_allclose(logits, answer.logits[-1], atol=1e-4 * float(np.abs(answer.logits).max()))
    for _ in answer.tokens:
        tokens.append(int(logits.argmax()))
        logits = decoder.step(tokens[-1])
    assert tokens == answer.tokens


def layout_of(ids, spec, views):
    """Where transformers put the image tokens."""
    places, spans = np.flatnonzero(ids == spec.image_token_id), []
    for view in views:
        span = Span(int(places[0]), spec.token_grid(*view.shape[1:]))
        spans.append(span)
        places = places[span.tokens :]
    assert not len(places)
    return Layout(len(ids), tuple(spans))
