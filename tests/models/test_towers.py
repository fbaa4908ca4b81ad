"""Towers on the eager backend, held to transformers' own on random weights and pictures of odd shapes."""

from __future__ import annotations

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_models import asked, deep, halved

from edgevlm.models.eager import EagerOps
from edgevlm.models.model import ModelSpec, image_features
from edgevlm.models.projector import Act, Group, Linear, Normalize, Take, projector
from edgevlm.models.record import Record, weight_tree
from edgevlm.models.spec import Attention, Block, Decoder, Mlp, Norm, Rope
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.models.towers.vit import Vit
from edgevlm.runtimes.eager import encode_view


class Arrays(dict[str, np.ndarray]):
    def read(self, name: str) -> np.ndarray:
        return self[name]


def _random(model: Any) -> dict[str, np.ndarray]:
    gen = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.3 if p.ndim == 1 else float(np.prod(p.shape[1:])) ** -0.5
            p.copy_(torch.randn(p.shape, generator=gen) * scale + (p.ndim == 1 and "norm" in name))
    model.eval()
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def _copy(weights: Arrays, ours: str, tensors: dict[str, np.ndarray], theirs: str) -> None:
    for part in ("weight", "bias"):
        if f"{theirs}.{part}" in tensors:
            weights[f"{ours}.{part}"] = tensors[f"{theirs}.{part}"]


def _patches(pixels: np.ndarray) -> np.ndarray:
    """Two frames' channels (6, H, W) in the processor's order: groups of 2 x 2 patches of 4 x 4 pixels, row by row; in
    each patch its channels, then the two frames."""
    rows, cols = pixels.shape[1] // 4, pixels.shape[2] // 4
    cells = pixels.reshape(2, 3, rows // 2, 2, 4, cols // 2, 2, 4)
    return np.ascontiguousarray(cells.transpose(2, 5, 3, 6, 1, 0, 4, 7)).reshape(rows * cols, -1)


@pytest.mark.parametrize("grid", [(6, 10), (4, 4), (8, 8), (2, 14), (12, 2)])
def test_qwen_vit_is_the_tower_of_transformers(grid: tuple[int, int]) -> None:
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as module

    width, inner, out = 64, 96, 48
    config = module.Qwen2_5_VLVisionConfig(
        depth=3, hidden_size=width, intermediate_size=inner, num_heads=4, patch_size=4, spatial_merge_size=2,
        window_size=16, fullatt_block_indexes=[1], out_hidden_size=out, in_channels=3,
    )  # fmt: skip
    model = module.Qwen2_5_VisionTransformerPretrainedModel(config)
    tensors = _random(model)
    weights = Arrays({"vision.patch_embedding.weight": tensors["patch_embed.proj.weight"].reshape(width, -1)})
    for i in range(3):
        w, source = f"vision.layers.{i}", f"blocks.{i}"
        _copy(weights, f"{w}.norm1", tensors, f"{source}.norm1")
        _copy(weights, f"{w}.norm2", tensors, f"{source}.norm2")
        _copy(weights, f"{w}.o", tensors, f"{source}.attn.proj")
        for part in ("weight", "bias"):
            for name, values in zip("qkv", np.split(tensors[f"{source}.attn.qkv.{part}"], 3), strict=True):
                weights[f"{w}.{name}.{part}"] = values
        for name in ("gate", "up", "down"):
            _copy(weights, f"{w}.{name}", tensors, f"{source}.mlp.{name}_proj")
    _copy(weights, "projector.norm", tensors, "merger.ln_q")
    _copy(weights, "projector.linear_1", tensors, "merger.mlp.0")
    _copy(weights, "projector.linear_2", tensors, "merger.mlp.2")
    attention = Attention(4, 4, 16, bias=True, out_bias=True, rope="patches")
    block = Block((attention,), Mlp(inner, bias=True), Norm("rms", 1e-6))
    tower = QwenVit(4, 2, 4, width, 3, (1,), block, frames=2)
    steps = (
        Normalize(Norm("rms", 1e-6)), Group(2, width), Linear("linear_1", 4 * width), Act("gelu"),
        Linear("linear_2", out), Take("order"),
    )  # fmt: skip

    rng = np.random.default_rng(0)
    rows, cols = grid
    pixels = rng.standard_normal((6, rows * 4, cols * 4)).astype(np.float32)
    patches = _patches(pixels)
    with torch.no_grad():
        found = model(torch.from_numpy(patches), grid_thw=torch.tensor([[1, rows, cols]]))
    expected = found.pooler_output.numpy() if hasattr(found, "pooler_output") else found.numpy()

    feeds = tower.feeds(pixels)
    ops = EagerOps(weights, inputs=feeds)
    ours = projector(ops, tower.states(ops, feeds)[0], steps, (0, 0))[0]
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()

    record = Record()
    shapes = {name: tensor.sizes(1) for name, tensor in tower.inputs().items()}
    projector(record, tower.states(record, shapes)[0], steps, (0, 0))
    assert {name: info.shape for name, info in record.found.items()} == {n: w.shape for n, w in weights.items()}


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("grid", [(6, 10), (4, 4), (2, 14), (12, 2), (2, 2)])
def test_a_tower_without_windows_is_that_of_transformers(family: str, grid: tuple[int, int]) -> None:
    """Qwen2-VL's, and Qwen3-VL's with its table of 5 x 5 positions and two further levels of features."""
    import importlib

    module, width, out = importlib.import_module(f"transformers.models.{family}.modeling_{family}"), 64, 48
    common = {"depth": 3, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2}
    deep = family == "qwen3_vl"
    if deep:
        config = module.Qwen3VLVisionConfig(
            **common, hidden_size=width, intermediate_size=96, out_hidden_size=out, num_position_embeddings=25,
            deepstack_visual_indexes=[0, 1],
        )  # fmt: skip
        model = module.Qwen3VLVisionModel(config)
    else:
        config = module.Qwen2VLVisionConfig(**common, embed_dim=width, hidden_size=out, mlp_ratio=2)
        model = module.Qwen2VisionTransformerPretrainedModel(config)
    tensors = _random(model)
    fc = ("linear_fc1", "linear_fc2") if deep else ("fc1", "fc2")
    weights = Arrays({"vision.patch_embedding.weight": tensors["patch_embed.proj.weight"].reshape(width, -1)})
    for i in range(3):
        w, source = f"vision.layers.{i}", f"blocks.{i}"
        for part in ("weight", "bias"):
            for name, values in zip("qkv", np.split(tensors[f"{source}.attn.qkv.{part}"], 3), strict=True):
                weights[f"{w}.{name}.{part}"] = values
        for ours, theirs in {
            "norm1": "norm1", "norm2": "norm2", "o": "attn.proj", "fc1": f"mlp.{fc[0]}", "fc2": f"mlp.{fc[1]}"
        }.items():  # fmt: skip
            _copy(weights, f"{w}.{ours}", tensors, f"{source}.{theirs}")
    mergers = {"projector": "merger"}
    if deep:
        weights["vision.patch_embedding.bias"] = tensors["patch_embed.proj.bias"]
        weights["vision.position_embedding"] = tensors["pos_embed.weight"]
        mergers |= {f"projector.deepstack.{i}": f"deepstack_merger_list.{i}" for i in (0, 1)}
    for ours, theirs in mergers.items():
        _copy(weights, f"{ours}.norm", tensors, f"{theirs}.{'norm' if deep else 'ln_q'}")
        _copy(weights, f"{ours}.linear_1", tensors, f"{theirs}.{fc[0] if deep else 'mlp.0'}")
        _copy(weights, f"{ours}.linear_2", tensors, f"{theirs}.{fc[1] if deep else 'mlp.2'}")

    attention = Attention(4, 4, 16, bias=True, out_bias=True, rope="patches")
    mlp = Mlp(96, "gelu_tanh", gated=False, bias=True) if deep else Mlp(128, "quick_gelu", gated=False, bias=True)
    block = Block((attention,), mlp, Norm("layer", 1e-6))
    more = {"patch_bias": True, "table": 5, "deepstack": (0, 1)} if deep else {}
    tower = QwenVit(4, 2, None, width, 3, (), block, frames=2, **more)
    norm, group = Normalize(Norm("layer", 1e-6)), Group(2, width)
    head = (Linear("linear_1", 4 * width), Act("gelu"), Linear("linear_2", out))
    rope = Rope(1e4, 12, sections=(2, 2, 2))
    text = Decoder(9, out, 8, (Block((Attention(4, 4, 12, rope="main"),), Mlp(8)),), (0, 0), ropes={"main": rope},
                   deepstack=tuple(range(len(tower.deepstack))))  # fmt: skip
    spec = ModelSpec("m", family, tower, (norm, group, *head), text, 1,
                     deepstack=(group, norm, *head) if deep else ())  # fmt: skip
    assert {n: i.shape for n, i in weight_tree(spec).items() if not n.startswith("decoder.")} == {
        name: values.shape for name, values in weights.items()
    }

    rows, cols = grid
    pixels = np.random.default_rng(0).standard_normal((6, rows * 4, cols * 4)).astype(np.float32)
    patches = _patches(pixels)
    with torch.no_grad():
        found = model(torch.from_numpy(patches), grid_thw=torch.tensor([[1, rows, cols]]))
    expected = np.concatenate([found.pooler_output.numpy(), *(found.deepstack_features if deep else ())], axis=1)
    ours = encode_view(spec, weights, pixels)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()


def test_vit_is_clip_and_its_last_layers_can_be_left_out() -> None:
    import transformers as hf

    width, inner = 64, 96
    config = hf.CLIPVisionConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=3, num_attention_heads=4, image_size=24,
        patch_size=8,
    )  # fmt: skip
    model = hf.CLIPVisionModel(config)
    tensors = {name.removeprefix("vision_model."): t for name, t in _random(model).items()}
    weights = Arrays()
    _copy(weights, "vision.patch_embedding", tensors, "embeddings.patch_embedding")
    weights["vision.class_token"] = tensors["embeddings.class_embedding"]
    weights["vision.position_embedding"] = tensors["embeddings.position_embedding.weight"]
    _copy(weights, "vision.pre_norm", tensors, "pre_layrnorm")
    names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    names |= {n: f"self_attn.{n}_proj" for n in "qkv"} | {"o": "self_attn.out_proj"}
    for i in range(2):
        for ours, theirs in names.items():
            _copy(weights, f"vision.layers.{i}.{ours}", tensors, f"encoder.layers.{i}.{theirs}")
    attention = Attention(4, 4, 16, bias=True, out_bias=True)
    block = Block((attention,), Mlp(inner, "quick_gelu", gated=False, bias=True), Norm("layer", 1e-5))
    tower = Vit(24, 8, width, 2, block, patch_bias=False, class_token=True, pre_norm=True, post_norm=False)
    pixels = np.random.default_rng(0).standard_normal((2, 3, 24, 24)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels), output_hidden_states=True).hidden_states[-2][:, 1:].numpy()
    ours = tower.states(EagerOps(weights), {"pixels": pixels})[0]
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()
    record = Record()
    tower.states(record, {"pixels": (1, 3, 24, 24)})
    assert {name: info.shape for name, info in record.found.items()} == {n: w.shape for n, w in weights.items()}


@pytest.mark.parametrize("spec", [deep(), halved(), asked()], ids=lambda spec: spec.family)
def test_views_in_one_sequence_are_apart(spec: ModelSpec) -> None:
    """What calibration plays at once gives what each view gives alone."""
    random = np.random.default_rng(0)
    shapes = {name: info.shape for name, info in weight_tree(spec).items()}
    weights = Arrays({name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()})
    assert isinstance(spec.vision, QwenVit)
    unit = spec.vision.patch_size * spec.vision.unit
    views = [random.standard_normal((3, a * unit, b * unit)).astype(np.float32) for a, b in ((1, 2), (3, 1), (2, 2))]
    joined = spec.vision.join([spec.vision.feeds(view) for view in views])
    ours = image_features(EagerOps(weights, inputs=joined), spec, joined)[0]
    alone = np.concatenate([encode_view(spec, weights, view) for view in views])
    np.testing.assert_allclose(ours, alone, atol=1e-5 * np.abs(alone).max())
