"""Tensor names that several families share, below the prefix of a part: how transformers names its classes' weights."""

from __future__ import annotations

from collections.abc import Callable

from edgevlm.checkpoint.families.tensors import Plain, Source, Split


def siglip(prefix: str) -> dict[str, str | Source]:
    """transformers' SiglipVisionTransformer, and the towers that copy it."""
    layer = f"{prefix}encoder.layers.{{i}}"
    return {
        "vision.patch_embedding": f"{prefix}embeddings.patch_embedding",
        "vision.position_embedding": Plain(f"{prefix}embeddings.position_embedding.weight"),
        **{f"vision.layers.{{i}}.{ours}": f"{layer}.{theirs}" for ours, theirs in _CLIP_LAYER.items()},
        "vision.post_norm": f"{prefix}post_layernorm",
    }


def clip(prefix: str) -> dict[str, str | Source]:
    """transformers' CLIPVisionTransformer."""
    return siglip(prefix) | {
        "vision.class_token": Plain(f"{prefix}embeddings.class_embedding"),
        "vision.pre_norm": f"{prefix}pre_layrnorm",
    }


def llama(prefix: str, head: str = "lm_head") -> dict[str, str | Source]:
    """transformers' LlamaModel, and Qwen2's and Qwen3's, which add tensors and rename none."""
    layer = f"{prefix}layers.{{i}}"
    return {
        "decoder.embed": f"{prefix}embed_tokens",
        **{f"decoder.layers.{{i}}.{ours}": f"{layer}.{theirs}" for ours, theirs in _LLAMA_LAYER.items()},
        "decoder.norm": f"{prefix}norm",
        "decoder.head": head,
    }


def fused_qkv(layers: str, rest: str, width: int) -> dict[str, Callable[[int], Source]]:
    """A tower whose layer i keeps its q, k and v maps of `width` rows each in one tensor, `layers`i`rest`."""

    def rows(start: int) -> Callable[[int], Source]:
        return lambda i: Split(f"{layers}{i}{rest}", start, 3 * width)

    return {f"vision.layers.{{i}}.{part}": rows(number * width) for number, part in enumerate("qkv")}


_CLIP_LAYER = {
    "norm1": "layer_norm1",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_LLAMA_LAYER = {
    "norm1": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "norm2": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
