"""InternVL 2.5, 3 and 3.5 (arXiv 2412.05271) in both layouts: transformers' own, and the one of the remote code."""

from __future__ import annotations

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.config import Section
from edgevlm.checkpoint.families.decoders import is_tied, read_decoder
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Names, Plain, Scaled, Split, prefix_of
from edgevlm.checkpoint.families.tokens import token_id
from edgevlm.checkpoint.families.towers import ACTIVATIONS, read_vit
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Linear, Normalize, Shuffle
from edgevlm.models.spec import Norm
from edgevlm.models.towers.vit import Vit

CONTEXT = "<IMG_CONTEXT>"


def read(checkpoint: Checkpoint, config: Section) -> ModelSpec:
    remote = checkpoint.config["model_type"] == "internvl_chat"
    text, prefix = (
        config.section("llm_config" if remote else "text_config"),
        prefix_of(checkpoint, "embed_tokens.weight"),
    )
    tied = is_tied(
        checkpoint, config, text, f"{_head(prefix)}.weight", f"{prefix}embed_tokens.weight", default=not remote
    )
    decoder = read_decoder(text, tied=tied)
    section = config.section("vision_config")
    section.choice("norm_type", "layer_norm", {"layer_norm": "layer_norm"})
    if section.flag("use_qk_norm") or section.flag("qk_normalization"):
        raise section.wrong("use_qk_norm", "false", True)
    pooled = remote or section.value("use_mean_pooling") is None or section.flag("use_mean_pooling")
    vision = read_vit(
        section, image_size=448, patch_size=14, hidden_size=1024, inner=4096, act="gelu", class_token=True,
        post_norm=not pooled,
    )  # fmt: skip
    config.choice("select_layer" if remote else "vision_feature_layer", -1, {-1: "last"})
    scale = round(1 / config.number("downsample_ratio", 0.5))
    return ModelSpec(
        name=checkpoint.name,
        family=str(checkpoint.config["model_type"]),
        vision=vision,
        projector=(
            Shuffle(scale, vision.hidden_size),
            Normalize(Norm("layer", 1e-5)),
            Linear("linear_1", decoder.hidden_size),
            Act("gelu" if remote else config.choice("projector_hidden_act", "gelu", ACTIVATIONS)),
            Linear("linear_2", decoder.hidden_size),
        ),
        decoder=decoder,
        image_token_id=token_id(checkpoint, CONTEXT) if remote else config.count("image_token_id", 151667, least=0),
    )


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    prefix = prefix_of(checkpoint, "embed_tokens.weight")
    tower = (
        _remote(spec) if spec.family == "internvl_chat" else _own(prefix_of(checkpoint, "embeddings.cls_token"), spec)
    )
    return {**tower, **names.llama(prefix, _head(prefix))}


def _own(tower: str, spec: ModelSpec) -> Names:
    assert isinstance(spec.vision, Vit)
    layer, connector = f"{tower}encoder.layer.{{i}}", tower.replace("vision_tower", "multi_modal_projector")
    side, width = spec.vision.patches_per_side, spec.vision.hidden_size
    return {
        "vision.patch_embedding": f"{tower}embeddings.patch_embeddings.projection",
        "vision.class_token": Plain(f"{tower}embeddings.cls_token", (1, 1, width)),
        "vision.position_embedding": Plain(f"{tower}embeddings.position_embeddings", (1, side**2 + 1, width)),
        "vision.layers.{i}.norm1": f"{layer}.layernorm_before",
        "vision.layers.{i}.q": f"{layer}.attention.q_proj",
        "vision.layers.{i}.k": f"{layer}.attention.k_proj",
        "vision.layers.{i}.v": f"{layer}.attention.v_proj",
        "vision.layers.{i}.o": lambda i: Scaled(
            Plain(f"{tower}encoder.layer.{i}.attention.projection_layer"), f"{tower}encoder.layer.{i}.lambda_1"
        ),
        "vision.layers.{i}.norm2": f"{layer}.layernorm_after",
        "vision.layers.{i}.fc1": f"{layer}.mlp.fc1",
        "vision.layers.{i}.fc2": lambda i: Scaled(
            Plain(f"{tower}encoder.layer.{i}.mlp.fc2"), f"{tower}encoder.layer.{i}.lambda_2"
        ),
        "vision.post_norm": f"{tower}layernorm",
        "projector.norm": f"{connector}layer_norm",
        "projector.linear_1": f"{connector}linear_1",
        "projector.linear_2": f"{connector}linear_2",
    }


def _remote(spec: ModelSpec) -> Names:
    assert isinstance(spec.vision, Vit)
    tower, side, width = "vision_model.", spec.vision.patches_per_side, spec.vision.hidden_size
    layer = "vision_model.encoder.layers."
    return {
        "vision.patch_embedding": f"{tower}embeddings.patch_embedding",
        "vision.class_token": Plain(f"{tower}embeddings.class_embedding", (1, 1, width)),
        "vision.position_embedding": Plain(f"{tower}embeddings.position_embedding", (1, side**2 + 1, width)),
        "vision.layers.{i}.norm1": f"{layer}{{i}}.norm1",
        "vision.layers.{i}.q": lambda i: Split(f"{layer}{i}.attn.qkv", 0, 3 * width),
        "vision.layers.{i}.k": lambda i: Split(f"{layer}{i}.attn.qkv", width, 3 * width),
        "vision.layers.{i}.v": lambda i: Split(f"{layer}{i}.attn.qkv", 2 * width, 3 * width),
        "vision.layers.{i}.o": lambda i: Scaled(Plain(f"{layer}{i}.attn.proj"), f"{layer}{i}.ls1"),
        "vision.layers.{i}.norm2": f"{layer}{{i}}.norm2",
        "vision.layers.{i}.fc1": f"{layer}{{i}}.mlp.fc1",
        "vision.layers.{i}.fc2": lambda i: Scaled(Plain(f"{layer}{i}.mlp.fc2"), f"{layer}{i}.ls2"),
        "projector.norm": "mlp1.0",
        "projector.linear_1": "mlp1.1",
        "projector.linear_2": "mlp1.3",
    }


def _head(prefix: str) -> str:
    """The head beside a decoder: language_model.lm_head, or lm_head at the top in transformers' memory layout."""
    return "language_model.lm_head" if prefix.startswith("language_model.model.") else "lm_head"


FAMILY = Family(("internvl", "internvl_chat"), "InternVL 2.5, 3 and 3.5", read, tensor_names)
