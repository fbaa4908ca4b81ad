"""Gemma 4's tower: any grid, maps with bounds, one table of positions for columns and one for rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families.tensors import Names, Plain, Rows, Source, Swapped, prefix_of
from edgevlm.checkpoint.families.transforms import Bound
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.model import Tower
from edgevlm.models.spec import Attention, Block, Mlp, Norm
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.types import I64

PATCHES = "patch_embedder.input_proj.weight"
BOUNDS = ("input_min", "input_max", "output_min", "output_max")


def read_tower(config: JsonFile) -> QwenVit:
    config.choice("model_type", "gemma4_vision", {"gemma4_vision": ""})
    config.choice("hidden_activation", "gelu_pytorch_tanh", {"gelu_pytorch_tanh": ""})
    config.require(False, "standardize", "attention_bias")
    rope = config.section("rope_parameters")
    rope.choice("rope_type", "axial", {"axial": "axial", "default": "axial"})
    heads, eps = config.count("num_attention_heads", 12), config.number("rms_norm_eps", 1e-6)
    norm, clipped = Norm("rms", eps), config.flag("use_clipped_linears", False)
    attention = Attention(
        heads, config.count("num_key_value_heads", 12), config.count("head_dim", 64), rope="patches", qk_norm=norm,
        scale=1.0, v_norm=Norm("rms", eps, weight=False), clipped=clipped,
    )  # fmt: skip
    mlp = Mlp(config.count("intermediate_size", 3072), "gelu_tanh", clipped=clipped)
    return QwenVit(
        patch_size=config.side("patch_size", 16),
        merge=config.count("pooling_kernel_size", 3),
        window=None,
        hidden_size=config.count("hidden_size", 768),
        num_layers=config.count("num_hidden_layers", 16, most=limits.LAYERS),
        full=(),
        block=Block((attention,), mlp, norm, places="sandwich"),
        theta=rope.number("rope_theta", 100.0),
        table=config.count("position_embedding_size", 10240, most=limits.TABLE_ROWS),
        resample="none",
    )


def tower_names(checkpoint: Checkpoint, vision: Tower) -> Names:
    tower = prefix_of(checkpoint, PATCHES)
    assert isinstance(vision, QwenVit)
    layer, a = f"{tower}encoder.layers.{{i}}.", vision.attention
    norms = {
        "norm1": "input_layernorm", "norm1_after": "post_attention_layernorm", "norm2": "pre_feedforward_layernorm",
        "norm2_after": "post_feedforward_layernorm",
    }  # fmt: skip
    maps = {part: f"self_attn.{part}_proj" for part in "qkvo"} | {m: f"mlp.{m}_proj" for m in ("gate", "up", "down")}

    def turned(name: str, heads: int) -> Callable[[int], Source]:
        """A head's halves turn by column and row, each in halves of its own; ours as one, first by row."""
        return lambda i: Rows(layer.replace("{i}", str(i)) + name, partial(_quarters, heads, a.head_dim))

    def bound(name: str) -> Callable[[int], Source]:
        return lambda i: Bound(layer.replace("{i}", str(i)) + name)

    return {
        "vision.patch_embedding": Swapped(f"{tower}patch_embedder.input_proj", 3),
        "vision.position_embedding": Plain(
            f"{tower}patch_embedder.position_embedding_table", (2, vision.table, vision.hidden_size)
        ),
        **{f"vision.layers.{{i}}.{ours}": f"{layer}{theirs}" for ours, theirs in norms.items()},
        **{f"vision.layers.{{i}}.{ours}": f"{layer}{theirs}.linear" for ours, theirs in maps.items()},
        **{f"vision.layers.{{i}}.{m}.{b}": bound(f"{theirs}.{b}") for m, theirs in maps.items() for b in BOUNDS},
        "vision.layers.{i}.q": turned("self_attn.q_proj.linear", a.heads),
        "vision.layers.{i}.k": turned("self_attn.k_proj.linear", a.kv_heads),
        "vision.layers.{i}.q_norm": turned("self_attn.q_norm", 1),
        "vision.layers.{i}.k_norm": turned("self_attn.k_norm", 1),
    }


def _quarters(heads: int, size: int) -> I64:
    return np.arange(heads * size).reshape(heads, 4, -1)[:, [2, 0, 3, 1]].reshape(-1)
