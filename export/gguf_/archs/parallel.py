"""What llama.cpp's architecture of parallel layers cannot compute: src/models/phi2.cpp there."""

from __future__ import annotations

from collections.abc import Callable

from edgevlm.models.spec import Attention, Block, Decoder, Mlp, Norm, Rope


def _other_layers(d: Decoder) -> bool:
    """Layers that are not attention and two maps behind one layer norm, all with biases, over whole heads."""
    block, a = d.block(0), d.block(0).mixers[0]
    if not isinstance(a, Attention):
        return True
    plain = Attention(a.heads, a.kv_heads, a.head_dim, bias=True, out_bias=True, rope="main")
    mlp = Mlp(block.mlp.size, "gelu_tanh", gated=False, bias=True)
    return set(d.blocks) != {Block((plain,), mlp, Norm("layer", block.norm.eps), "parallel")} or d.norm != block.norm


PARALLEL: dict[str, Callable[[Decoder], bool]] = {
    "shows a prompt to itself, where llama.cpp is causal": lambda d: d.mask not in ("causal", "prefix"),
    "has other layers than this architecture of llama.cpp": _other_layers,
    "scales RoPE, which this architecture of llama.cpp lacks": lambda d: (
        d.ropes != {"main": Rope(d.ropes["main"].theta, d.ropes["main"].size)}
    ),
    "has no bias of the head, which llama.cpp asks for": lambda d: not d.head_bias or d.tie_embeddings,
    "changes embeddings or logits": lambda d: (
        bool(d.learned_positions or d.embed_norm or d.logit_cap or d.deepstack) or d.embed_scale != 1.0
    ),
}
