"""Decoders with norms on both sides of each part: what llama.cpp's architectures for them cannot compute."""

from __future__ import annotations

import math
from dataclasses import replace

from edgevlm.export.gguf_.archs.parts import CHANGED, KINDS, Refusals, attention, mlp, other_sections, rope
from edgevlm.models.spec import Attention, Decoder, Mlp, Rope


def far(d: Decoder) -> int:
    """Every how many layers one sees all positions."""
    full = [layer for layer in range(d.num_layers) if _windows(d)[layer] is None]
    return full[0] + 1 if full else d.num_layers + 1


def _windows(d: Decoder) -> list[int | None]:
    """Each layer's window."""
    mixers = (d.block(layer).mixers[0] for layer in range(d.num_layers))
    return [mixer.window if isinstance(mixer, Attention) else None for mixer in mixers]


def window(d: Decoder) -> int:
    return next(filter(None, _windows(d)))


def _other_windows(d: Decoder) -> bool:
    """Anything but the same window and RoPE "local" in each layer that is not the n-th, which sees all."""
    wanted = [None if (layer + 1) % far(d) == 0 else window(d) for layer in range(d.num_layers)]
    ropes = {(m.window is None, m.rope) for block in d.blocks for m in block.mixers if isinstance(m, Attention)}
    return _windows(d) != wanted or not ropes <= {(True, "main"), (False, "local")}


def _other_layers(d: Decoder) -> bool:
    """Layers that differ in more than window and RoPE, or have other parts than norms of heads before the scale."""
    a = attention(d)
    alike = {replace(block, mixers=(replace(a, window=None, rope=None),)) for block in d.blocks}
    plain = Attention(a.heads, a.kv_heads, a.head_dim, qk_norm=d.norm, scale=a.scale)
    mixers = {replace(m, window=None, rope=None) for b in d.blocks for m in b.mixers if isinstance(m, Attention)}
    return (
        len(alike) > 1
        or mixers != {plain}
        or any(len(block.mixers) != 1 for block in d.blocks)
        or (d.block(0).norm, d.block(0).gated) != (d.norm, False)
        or (mlp(d).act, mlp(d).gated, mlp(d).bias) != ("gelu_tanh", True, False)
        or d.norm is None
        or d.norm.kind != "rms"
    )


def _scale(d: Decoder) -> float:
    """What llama.cpp multiplies scores by: its largest model of this architecture is known by its layers."""
    a = attention(d)
    return float((d.hidden_size / a.heads if d.num_layers == 62 else a.head_dim) ** -0.5)


WINDOWED: Refusals = {
    "shows a prompt to itself, where llama.cpp is causal": lambda d: d.mask not in ("causal", "image"),
    "has other windows than every layer's but the n-th": _other_windows,
    "has other layers than this architecture of llama.cpp": _other_layers,
    "scales scores in another way than llama.cpp": lambda d: (
        not math.isclose(attention(d).scale or 0, _scale(d), rel_tol=1e-6)
    ),
    "has another RoPE than this architecture of llama.cpp": lambda d: (
        any(
            replace(rope, theta=1.0, factor=1.0) != Rope(1.0, attention(d).head_dim) or rope.size % 2
            for rope in d.ropes.values()
        )
        or d.ropes["local"].factor != 1
    ),
    # llama.cpp takes the root itself; a checkpoint may have rounded it to bfloat16.
    "scales embeddings by another number than the root of their width": lambda d: (
        not math.isclose(d.embed_scale, d.hidden_size**0.5, rel_tol=2**-8)
    ),
    "changes embeddings or logits": lambda d: bool(
        d.learned_positions or d.embed_norm or d.logit_cap or d.deepstack or d.head_bias
    ),
}


def _plain(d: Decoder) -> Attention:
    a = attention(d)
    return Attention(a.heads, a.kv_heads, a.head_dim, a.bias, rope="main")


BOTH_SIDES: Refusals = {
    "shows positions later ones, where this architecture of llama.cpp is causal": lambda d: d.mask != "causal",
    KINDS: lambda d: len(set(d.layers)) > 1,
    "has other mixers than full attention with RoPE": lambda d: d.block(0).mixers != (_plain(d),),
    "has other norms than root mean squares before and behind each part, and before the head": lambda d: (
        d.norm != d.block(0).norm or d.norm is None or d.norm.kind != "rms" or d.block(0).gated
    ),
    "has another MLP than a gated one with SiLU and without biases": lambda d: mlp(d) != Mlp(mlp(d).size),
    "has another RoPE than one of three axes in runs, unscaled": lambda d: (
        set(d.ropes) != {"main"}
        or other_sections(d)
        or replace(rope(d), theta=1.0) != Rope(1.0, rope(d).size, sections=rope(d).sections)
    ),
    **CHANGED,
}
