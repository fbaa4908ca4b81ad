"""Tensor names that several families share, below the prefix of a part: how transformers names its classes' weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families.tensors import Names, Plain, Scaled, Source, Split, prefix_of
from edgevlm.models.model import ModelSpec
from edgevlm.models.towers.qwen_vit import QwenVit

PATCHES = "embeddings.patch_embedding.weight"  # the end of one name in such a tower


def siglip_pooling(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    """What files hold of SigLIP's pooling head, which no family reads."""
    return (f"{prefix_of(checkpoint, PATCHES)}head.",)


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


Entries = dict[str, "str | Source | Callable[[int], Source]"]


def beit(prefix: str, positions: int, width: int) -> Entries:
    """transformers' BeitModel, and the towers that copy its names: layer scale is folded into the maps before it."""
    layer = f"{prefix}encoder.layer.{{i}}"
    return {
        "vision.patch_embedding": f"{prefix}embeddings.patch_embeddings.projection",
        "vision.class_token": Plain(f"{prefix}embeddings.cls_token", (1, 1, width)),
        "vision.position_embedding": Plain(f"{prefix}embeddings.position_embeddings", (1, positions, width)),
        "vision.layers.{i}.norm1": f"{layer}.layernorm_before",
        **{f"vision.layers.{{i}}.{part}": f"{layer}.attention.{part}_proj" for part in "qkv"},
        "vision.layers.{i}.o": scaled(f"{layer}.attention.projection_layer", f"{layer}.lambda_1"),
        "vision.layers.{i}.norm2": f"{layer}.layernorm_after",
        "vision.layers.{i}.fc1": f"{layer}.mlp.fc1",
        "vision.layers.{i}.fc2": scaled(f"{layer}.mlp.fc2", f"{layer}.lambda_2"),
        "vision.post_norm": f"{prefix}layernorm",
    }


def pixtral(checkpoint: Checkpoint, patch: int, width: int) -> Entries:
    """transformers' PixtralVisionModel."""
    prefix = prefix_of(checkpoint, "patch_conv.weight")
    layer = f"{prefix}transformer.layers.{{i}}"
    return {
        "vision.patch_embedding": Plain(f"{prefix}patch_conv", (width, 3, patch, patch)),
        "vision.pre_norm": f"{prefix}ln_pre",
        "vision.layers.{i}.norm1": f"{layer}.attention_norm",
        **{f"vision.layers.{{i}}.{part}": f"{layer}.attention.{part}_proj" for part in "qkvo"},
        "vision.layers.{i}.norm2": f"{layer}.ffn_norm",
        **{f"vision.layers.{{i}}.{part}": f"{layer}.feed_forward.{part}_proj" for part in ("gate", "up", "down")},
    }


def timm(prefix: str, positions: int, width: int) -> Entries:
    """Layers under timm's names (norm1, attn.qkv, ls1, mlp.fc1) with the embeddings of transformers' CLIP."""
    layers = f"{prefix}encoder.layers."
    return {
        "vision.patch_embedding": f"{prefix}embeddings.patch_embedding",
        "vision.class_token": Plain(f"{prefix}embeddings.class_embedding", (1, 1, width)),
        "vision.position_embedding": Plain(f"{prefix}embeddings.position_embedding", (1, positions, width)),
        **fused_qkv(layers, ".attn.qkv", width),
        "vision.layers.{i}.o": scaled(f"{layers}{{i}}.attn.proj", f"{layers}{{i}}.ls1"),
        **{f"vision.layers.{{i}}.{part}": f"{layers}{{i}}.{part}" for part in ("norm1", "norm2")},
        "vision.layers.{i}.fc1": f"{layers}{{i}}.mlp.fc1",
        "vision.layers.{i}.fc2": scaled(f"{layers}{{i}}.mlp.fc2", f"{layers}{{i}}.ls2"),
    }


def scaled(stem: str, scale: str) -> Callable[[int], Source]:
    """A map of layer {i} with its layer scale."""
    return lambda i: Scaled(Plain(stem.replace("{i}", str(i))), scale.replace("{i}", str(i)))


def two_maps(prefix: str, norm: str | None = None) -> Entries:
    """A projector of two maps, and of a norm before them."""
    maps: Entries = {f"projector.{name}": f"{prefix}{name}" for name in ("linear_1", "linear_2")}
    return maps | ({"projector.norm": f"{prefix}{norm}"} if norm else {})


def head_beside(prefix: str) -> str:
    """The head of the decoder under `prefix`: beside its model, or at the top in transformers' memory layout."""
    return "language_model.lm_head" if prefix.startswith("language_model.model.") else "lm_head"


def llama(prefix: str, head: str = "lm_head") -> dict[str, str | Source]:
    """transformers' LlamaModel, and Qwen2's and Qwen3's, which add tensors and rename none."""
    layer = f"{prefix}layers.{{i}}"
    return {
        "decoder.embed": f"{prefix}embed_tokens",
        **{f"decoder.layers.{{i}}.{ours}": f"{layer}.{theirs}" for ours, theirs in _LLAMA_LAYER.items()},
        "decoder.norm": f"{prefix}norm",
        "decoder.head": head,
    }


def per_layer(prefix: str, head: str) -> Names:
    """Gemma 3n's and 4's: norms behind parts, too, and the maps of per-layer embeddings; otherwise as `llama`."""
    own = {
        "norm1_after": "post_attention_layernorm", "norm2": "pre_feedforward_layernorm",
        "norm2_after": "post_feedforward_layernorm", "per_layer_gate": "per_layer_input_gate",
        "per_layer_up": "per_layer_projection", "per_layer_norm": "post_per_layer_input_norm",
    }  # fmt: skip
    return {
        **llama(prefix, head),
        **{f"decoder.layers.{{i}}.{ours}": f"{prefix}layers.{{i}}.{theirs}" for ours, theirs in own.items()},
        "decoder.per_layer_map": f"{prefix}per_layer_model_projection",
        "decoder.per_layer_norm": f"{prefix}per_layer_projection_norm",
    }


def grid(prefix: str, tower: QwenVit, **mlp: str) -> dict[str, str | Source | Callable[[int], Source]]:
    """A tower on any grid, whose q, k and v are one tensor, without its projector. mlp: theirs by our names."""
    block = f"{prefix}blocks."
    kernel = (tower.hidden_size, 3, tower.frames, tower.patch_size, tower.patch_size)
    return {
        "vision.patch_embedding": Plain(f"{prefix}patch_embed.proj", kernel),
        **{f"vision.layers.{{i}}.{part}": f"{block}{{i}}.{part}" for part in ("norm1", "norm2")},
        **fused_qkv(block, ".attn.qkv", tower.hidden_size),
        "vision.layers.{i}.o": f"{block}{{i}}.attn.proj",
        **{f"vision.layers.{{i}}.{ours}": f"{block}{{i}}.mlp.{theirs}" for ours, theirs in mlp.items()},
    }


def fused_qkv(layers: str, rest: str, width: int) -> dict[str, Callable[[int], Source]]:
    """A tower whose layer i keeps its q, k and v maps of `width` rows each in one tensor, `layers`i`rest`."""

    return stacked(f"{layers}{{i}}{rest}", {part: number * width for number, part in enumerate("qkv")}, 3 * width)


def stacked(
    stem: str, starts: Mapping[str, int], total: int, part: str = "vision"
) -> dict[str, Callable[[int], Source]]:
    """Maps of layer {i} that stand in one tensor of `total` rows, each from a row of it on."""

    def rows(start: int) -> Callable[[int], Source]:
        return lambda i: Split(stem.replace("{i}", str(i)), start, total)

    return {f"{part}.layers.{{i}}.{name}": rows(start) for name, start in starts.items()}


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
