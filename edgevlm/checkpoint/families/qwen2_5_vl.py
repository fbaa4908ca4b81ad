"""Qwen2.5-VL (arXiv 2502.13923): any grid, window attention, 2-D RoPE in the tower, M-RoPE in the decoder."""

from __future__ import annotations

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.config import Section
from edgevlm.checkpoint.families.decoders import is_tied, read_decoder
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Names, Split, SumFrames, prefix_of
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Group, Linear, Normalize, Take
from edgevlm.models.spec import Attention, Block, Mlp, Norm
from edgevlm.models.towers.qwen_vit import QwenVit

HEAD = "lm_head"


def read(checkpoint: Checkpoint, config: Section) -> ModelSpec:
    nested = config.section("text_config")
    text = nested if nested.given else config.without("model_type")  # older files have the decoder's fields at the top
    prefix = prefix_of(checkpoint, "embed_tokens.weight")
    tied = is_tied(checkpoint, config, text, f"{HEAD}.weight", f"{prefix}embed_tokens.weight")
    decoder = read_decoder(text, tied=tied, sections=_sections(text), kind="qwen2")
    tower = _tower(config.section("vision_config"))
    width = tower.hidden_size
    return ModelSpec(
        name=checkpoint.name,
        family="qwen2_5_vl",
        vision=tower,
        projector=(
            Normalize(tower.block.norm),
            Group(tower.merge, width),
            Linear("linear_1", width * tower.merge**2),
            Act("gelu"),
            Linear("linear_2", decoder.hidden_size),
            Take("order"),
        ),
        decoder=decoder,
        image_token_id=config.count("image_token_id", 151655, least=0),
    )


def _sections(text: Section) -> tuple[int, ...]:
    """Frequencies of M-RoPE's axes: time, row, column."""
    found = None
    for key in ("rope_scaling", "rope_parameters"):
        found = text.section(key).value("mrope_section")
        if isinstance(found, list) and len(found) == 3 and all(type(n) is int and n > 0 for n in found):
            return tuple(found)
    raise text.wrong("rope_parameters", "an object with mrope_section, three whole numbers", found)


def _tower(config: Section) -> QwenVit:
    config.choice("hidden_act", "silu", {"silu": "silu"})
    config.choice("temporal_patch_size", 2, {2: "2"})
    hidden, heads = config.count("hidden_size", 3584), config.count("num_heads", 16)
    patch, merge = config.count("patch_size", 14), config.count("spatial_merge_size", 2)
    full = config.value("fullatt_block_indexes")
    attention = Attention(heads, heads, max(1, hidden // heads), bias=True, out_bias=True, rope="patches")
    return QwenVit(
        patch_size=patch,
        merge=merge,
        window=config.count("window_size", 112) // merge // patch * merge,
        hidden_size=hidden,
        num_layers=config.count("depth", 32),
        full=tuple(full if isinstance(full, list) else (7, 15, 23, 31)),
        block=Block((attention,), Mlp(config.count("intermediate_size", 3420), bias=True), Norm("rms", 1e-6)),
    )


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    tower, vision = prefix_of(checkpoint, "patch_embed.proj.weight"), spec.vision
    assert isinstance(vision, QwenVit)
    block, width = f"{tower}blocks.", vision.hidden_size
    return {
        "vision.patch_embedding": SumFrames(f"{tower}patch_embed.proj", vision.patch_size),
        "vision.layers.{i}.norm1": f"{block}{{i}}.norm1",
        "vision.layers.{i}.q": lambda i: Split(f"{block}{i}.attn.qkv", 0, 3 * width),
        "vision.layers.{i}.k": lambda i: Split(f"{block}{i}.attn.qkv", width, 3 * width),
        "vision.layers.{i}.v": lambda i: Split(f"{block}{i}.attn.qkv", 2 * width, 3 * width),
        "vision.layers.{i}.o": f"{block}{{i}}.attn.proj",
        "vision.layers.{i}.norm2": f"{block}{{i}}.norm2",
        "vision.layers.{i}.gate": f"{block}{{i}}.mlp.gate_proj",
        "vision.layers.{i}.up": f"{block}{{i}}.mlp.up_proj",
        "vision.layers.{i}.down": f"{block}{{i}}.mlp.down_proj",
        "projector.norm": f"{tower}merger.ln_q",
        "projector.linear_1": f"{tower}merger.mlp.0",
        "projector.linear_2": f"{tower}merger.mlp.2",
        **names.llama(prefix_of(checkpoint, "embed_tokens.weight"), HEAD),
    }


FAMILY = Family(("qwen2_5_vl",), "Qwen2.5-VL", read, tensor_names)
