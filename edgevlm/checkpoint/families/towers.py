"""Towers of vision_config: SigLIP's and CLIP's kind, and those of any grid. Defaults are those of transformers' config
classes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.projector import Act, Group, Linear, Normalize, Step
from edgevlm.models.spec import Attention, Block, Mlp, Norm
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.models.towers.tables import stepped
from edgevlm.models.towers.vit import Vit

ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "quick_gelu": "quick_gelu"}


def read_vit(
    config: JsonFile, *, image_size: int, patch_size: int, hidden_size: int, inner: int = 3072, heads: int = 16,
    eps: float = 1e-6, act: str = "gelu_pytorch_tanh", **options: Any,
) -> Vit:  # fmt: skip
    """A tower on square pictures; keyword arguments are the family's defaults and, in `options`, fields of `Vit`."""
    hidden, count = config.count("hidden_size", hidden_size), config.count("num_attention_heads", heads)
    config.choice("num_channels", 3, {3: "3"})
    mlp = Mlp(
        config.count("intermediate_size", inner), config.choice("hidden_act", act, ACTIVATIONS), gated=False, bias=True
    )
    attention = Attention(count, count, max(1, hidden // count), bias=True, out_bias=True)
    return Vit(
        image_size=config.side("image_size", image_size),
        patch_size=config.side("patch_size", patch_size),
        hidden_size=hidden,
        num_layers=config.count("num_hidden_layers", 12),
        block=Block((attention,), mlp, Norm("layer", config.number("layer_norm_eps", eps))),
        **options,
    )


def read_grid(
    config: JsonFile, *, hidden_size: int, mlp: Mlp, norm: Norm, patch_size: int = 14, depth: int = 32, heads: int = 16,
    window: int | None = None, full: tuple[int, ...] = (), frames: int = 2, **options: Any,
) -> QwenVit:  # fmt: skip
    """A tower on any grid of patches, with biases and RoPE over rows and columns.

    hidden_size, patch_size, depth, heads: the family's defaults. frames: what it must have. window and the rest: fields
    of `QwenVit`.
    """
    hidden, count = config.count("hidden_size", hidden_size), config.count("num_heads", heads)
    config.choice("temporal_patch_size", frames, {frames: f"{frames}"})
    for key in ("in_channels", "in_chans"):
        config.choice(key, 3, {3: "3"})
    rope = config.section("rope_parameters")
    rope.choice("rope_type", "axial", {"axial": "axial", "default": "axial"})
    attention = Attention(count, count, max(1, hidden // count), bias=True, out_bias=True, rope="patches")
    return QwenVit(
        patch_size=config.side("patch_size", patch_size),
        merge=config.count("spatial_merge_size", 2),
        window=window,
        hidden_size=hidden,
        num_layers=config.count("depth", depth, most=limits.LAYERS),
        full=full,
        block=Block((attention,), mlp, norm),
        frames=frames,
        theta=rope.number("rope_theta", 10000.0),
        **options,
    )


def merger(tower: QwenVit, out: int) -> tuple[Step, ...]:
    """A norm, the patches of a token side by side, two linear maps to `out` values."""
    norm, group = Normalize(tower.block.norm), Group(tower.merge, tower.hidden_size)
    return norm, group, Linear("linear_1", tower.hidden_size * tower.merge**2), Act("gelu"), Linear("linear_2", out)


def marked_layers(config: JsonFile, usual: list[int]) -> tuple[int, ...]:
    """Layers of a tower that give further levels of features."""
    marked = config.value("deepstack_visual_indexes", usual)
    if not (isinstance(marked, list) and all(type(i) is int and i >= 0 for i in marked)):
        raise config.wrong("deepstack_visual_indexes", "a list of layers")
    return tuple(marked)


def read_siglip2(config: JsonFile, merge: int) -> QwenVit:
    """SigLIP2's tower on any grid (arXiv 2502.14786). merge: patches per side that the projector makes one token of."""
    config.choice("model_type", "siglip2_vision_model", {"siglip2_vision_model": "siglip2"})
    config.choice("num_channels", 3, {3: "3"})
    hidden, heads = config.count("hidden_size", 768), config.count("num_attention_heads", 12)
    patches = config.count("num_patches", 256, most=limits.PATCHES)
    if (side := math.isqrt(patches)) ** 2 != patches:
        raise config.wrong("num_patches", "the square of a whole number")
    act = config.choice("hidden_act", "gelu_pytorch_tanh", ACTIVATIONS)
    attention = Attention(heads, heads, max(1, hidden // heads), bias=True, out_bias=True)
    mlp = Mlp(config.count("intermediate_size", 3072), act, gated=False, bias=True)
    return QwenVit(
        patch_size=config.side("patch_size", 16),
        merge=merge,
        window=None,
        hidden_size=hidden,
        num_layers=config.count("num_hidden_layers", 12, most=limits.LAYERS),
        full=(),
        block=Block((attention,), mlp, Norm("layer", config.number("layer_norm_eps", 1e-6))),
        patch_bias=True,
        table=side,
        resample="smooth",
        post_norm=True,
    )


def read_axial(config: JsonFile, merge: int) -> QwenVit:
    """A tower of gated blocks without biases on any grid, a norm before the first, RoPE over rows and columns."""
    hidden, count = config.count("hidden_size", 1024), config.count("num_attention_heads", 16)
    config.choice("num_channels", 3, {3: "3"})
    size = max(1, hidden // count)
    config.choice("head_dim", size, {size: f"{size}"})
    rope = config.section("rope_parameters")
    rope.choice("rope_type", "axial", {"axial": "axial", "default": "axial"})
    mlp = Mlp(
        config.count("intermediate_size", 4096), config.choice("hidden_act", "gelu", ACTIVATIONS | {"silu": "silu"})
    )
    return QwenVit(
        patch_size=config.side("patch_size", 16),
        merge=merge,
        window=None,
        hidden_size=hidden,
        num_layers=config.count("num_hidden_layers", 24, most=limits.LAYERS),
        full=(),
        block=Block((Attention(count, count, size, rope="patches"),), mlp, Norm("rms", 1e-5)),
        theta=rope.number("rope_theta", config.number("rope_theta", 10000.0)),
        pre_norm=True,
        staggered=True,
    )


def bucketed_positions(side: int) -> npt.NDArray[np.int64]:
    """The row of the position table that each of side x side patches takes, in raster order (Idefics2 and its kin).

    transformers buckets float32 fractions i/side, and rounding puts some patches of some sizes (19, 25, 29) into their
    neighbour's bucket. Models are trained with that, so it is reproduced to the bit. At the published sizes (26, 27 and
    32 patches per side) every patch has its own row.
    """
    lines = stepped(side, np.arange(side), side)
    rows: npt.NDArray[np.int64] = (lines[:, None] * side + lines[None, :]).reshape(-1)
    return rows
