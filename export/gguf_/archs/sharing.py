"""llama.cpp's text architecture whose last layers read others' keys and values and which looks tokens up in a second
table (src/models/gemma4.cpp, llama-model.cpp)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from edgevlm.export.gguf_.archs.parts import Refusals, Value
from edgevlm.models.spec import Attention, Block, Decoder, Mlp, Norm, Rope

Keys = dict[str, Callable[[Decoder], Value]]


def _mixers(d: Decoder) -> list[Attention]:
    """Each layer's attention; none where a layer has anything else."""
    blocks = [d.block(layer) for layer in range(d.num_layers)]
    found = [block.mixers[0] for block in blocks if len(block.mixers) == 1]
    return [mixer for mixer in found if isinstance(mixer, Attention)]


def _reading(d: Decoder) -> int:
    """Layers that read an earlier one's keys and values."""
    return sum(mixer.reads == "earlier" for mixer in _mixers(d))


def first(d: Decoder, *, near: bool) -> Attention:
    """The first attention with a window, or without."""
    return next((a for a in _mixers(d) if (a.window is not None) == near), Attention(1, 1, 2))


def _other_attention(d: Decoder) -> bool:
    """Anything but attention within one window and to all positions, both with as many heads and bare scores."""
    if len(_mixers(d)) != d.num_layers or len(d.windows) != 2 or None not in d.windows or d.norm is None:
        return True
    bare, near, far = Norm("rms", d.norm.eps, weight=False), first(d, near=True), first(d, near=False)
    usual = (
        Attention(
            near.heads, near.kv_heads, near.head_dim, rope="local", qk_norm=d.norm, scale=1.0, window=near.window
        ),
        Attention(near.heads, far.kv_heads, far.head_dim, rope="main", qk_norm=d.norm, scale=1.0),
    )
    own = {replace(attention, v_norm=bare) for attention in usual}
    return not set(_mixers(d)) <= own | {replace(attention, reads="earlier") for attention in usual}


def _other_blocks(d: Decoder) -> bool:
    if d.norm is None or d.norm.kind != "rms":
        return True
    plain = Block((), Mlp(1, "gelu_tanh"), d.norm, places="sandwich", scaled=True)
    return any(replace(block, mixers=(), mlp=replace(block.mlp, size=1)) != plain for block in d.blocks)


def _other_sharing(d: Decoder) -> bool:
    """llama.cpp reads the last layer's that has its own, and with a window the one's before it."""
    mixers, own = _mixers(d), d.num_layers - _reading(d)
    reads = [mixer.reads for mixer in mixers]
    windows = [mixer.window is not None for mixer in mixers[own - 2 : own]]
    return own < 2 or "earlier" in reads[:own] or (own < d.num_layers and windows != [True, False])


def _other_ropes(d: Decoder) -> bool:
    sizes = {"main": first(d, near=False).head_dim, "local": first(d, near=True).head_dim}
    plain = {name: Rope(1.0, size) for name, size in sizes.items()}
    found = {name: replace(rope, theta=1.0, turning=None) for name, rope in d.ropes.items()}
    return found != plain or d.ropes["local"].turning is not None


def _widths(d: Decoder) -> int | list[int]:
    found = [d.block(layer).mlp.size for layer in range(d.num_layers)]
    return found[0] if len(set(found)) == 1 else found


ROOTS: Refusals = {
    # llama.cpp takes the root itself; a checkpoint may have rounded it to bfloat16.
    "scales embeddings by another number than the root of their width": lambda d: (
        not math.isclose(d.embed_scale, d.hidden_size**0.5, rel_tol=2**-8)
        or not math.isclose(d.per_layer_scale, d.per_layer**0.5, rel_tol=2**-8)
    ),
}
REFUSALS: Refusals = {
    "shows positions later ones, where this architecture of llama.cpp is causal": lambda d: d.mask != "causal",
    "has other attention than this architecture of llama.cpp": _other_attention,
    "has other layers than this architecture of llama.cpp": _other_blocks,
    "reads keys and values of other layers than llama.cpp": _other_sharing,
    "has another RoPE than this architecture of llama.cpp": _other_ropes,
    **ROOTS,
    "changes embeddings or takes further levels of features": lambda d: bool(
        d.learned_positions or d.embed_norm or d.deepstack or d.head_bias
    ),
}
KEYS: Keys = {
    "feed_forward_length": _widths,
    "embedding_length_per_layer_input": lambda d: d.per_layer,
    "final_logit_softcapping": lambda d: float(d.logit_cap or 0.0),
    "attention.shared_kv_layers": _reading,
    "attention.sliding_window": lambda d: first(d, near=True).window or 0,
    "attention.sliding_window_pattern": lambda d: [mixer.window is not None for mixer in _mixers(d)],
    "attention.key_length": lambda d: first(d, near=False).head_dim,
    "attention.value_length": lambda d: first(d, near=False).head_dim,
    "attention.key_length_swa": lambda d: first(d, near=True).head_dim,
    "attention.value_length_swa": lambda d: first(d, near=True).head_dim,
    "rope.dimension_count_swa": lambda d: first(d, near=True).head_dim,
    "rope.freq_base_swa": lambda d: float(d.ropes["local"].theta),
}
