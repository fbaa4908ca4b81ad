"""Gemma 4's decoder: heads of two sizes, layers that read others' keys and values, per-layer embeddings."""

from __future__ import annotations

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.decoders import is_parted
from edgevlm.checkpoint.families.gemma_text import EMBED, FULL, SLIDING, cap, head_of, rounded
from edgevlm.checkpoint.families.tensors import Names, Plain, prefix_of
from edgevlm.checkpoint.families.transforms import Copied
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.spec import Attention, Block, Decoder, Mlp, Norm, Rope


def read_text(checkpoint: Checkpoint, config: JsonFile, *, tied: bool) -> Decoder:
    """The decoder of a text_config. tied: as `read_gemma`'s."""
    config.choice("model_type", "gemma4_text", {"gemma4_text": ""})
    config.choice("hidden_activation", "gelu_pytorch_tanh", {"gelu_pytorch_tanh": ""})
    config.require(False, "enable_moe_block", "attention_k_eq_v", "attention_bias")
    if config.value("use_bidirectional_attention") is not None:
        raise config.wrong("use_bidirectional_attention", "null, as the models E2B and E4B have it")
    vocab, count = config.count("vocab_size", 262144), config.count("num_hidden_layers", 30, most=limits.LAYERS)
    if (rows := config.count("vocab_size_per_layer_input", 262144)) != vocab:
        raise config.wrong("vocab_size_per_layer_input", f"the {vocab} tokens of vocab_size, not {rows}")
    hidden, norm = config.count("hidden_size", 2304), Norm("rms", config.number("rms_norm_eps", 1e-6))
    shared = config.count("num_kv_shared_layers", 0, least=0, most=count)
    inner, wide = config.count("intermediate_size", 9216), config.flag("use_double_wide_mlp", False)
    kinds, window = layer_kinds(config, count), config.count("sliding_window", 512)
    found: list[Block] = []
    for layer, kind in enumerate(kinds):
        reads, heads, full = layer >= count - shared, _heads(config, layer, kind), kind == FULL
        attention = Attention(
            config.count("num_attention_heads", 8),
            *heads,
            rope="main" if full else "local",
            qk_norm=norm,
            scale=1.0,
            window=None if full else window,
            reads="earlier" if reads else "self",
            v_norm=None if reads else Norm("rms", norm.eps, weight=False),
        )
        mlp = Mlp(inner * (2 if wide and reads else 1), "gelu_tanh")
        found.append(Block((attention,), mlp, norm, places="sandwich", scaled=True))
    width = config.count("hidden_size_per_layer_input", 256, least=0)
    blocks, embed = tuple(dict.fromkeys(found)), f"{prefix_of(checkpoint, EMBED)}{EMBED}"
    sizes = {kind: _heads(config, kinds.index(kind), kind)[1] for kind in kinds}
    return Decoder(
        vocab_size=vocab,
        hidden_size=hidden,
        context_length=config.count("max_position_embeddings", 131072),
        blocks=blocks,
        layers=tuple(map(blocks.index, found)),
        norm=norm,
        ropes={"main" if kind == FULL else "local": _rope(config, kind, size) for kind, size in sizes.items()},
        embed_scale=rounded(hidden**0.5, checkpoint.dtype(embed)),
        logit_cap=cap(config, "final_logit_softcapping", None),
        per_layer=width,
        per_layer_scale=rounded(width**0.5, checkpoint.dtype(embed)) if width else 1.0,
        tie_embeddings=tied and not is_parted(checkpoint, head_of(checkpoint), embed),
    )


def layer_kinds(config: JsonFile, count: int) -> list[str]:
    """Each layer's kind; the last one sees all positions, whatever the file says."""
    kinds = config.value("layer_types", [SLIDING if (i + 1) % 6 else FULL for i in range(count)])
    if not isinstance(kinds, list) or len(kinds) != count or any(kind not in (SLIDING, FULL) for kind in kinds):
        raise config.wrong("layer_types", f"{count} times '{SLIDING}' or '{FULL}'")
    return [*kinds[:-1], FULL]


def _heads(config: JsonFile, layer: int, kind: str) -> tuple[int, int]:
    """Heads of keys, and their size: transformers 5 saves what differs by layer, published files have a key for it."""
    kv, size = config.count("num_key_value_heads", 4), config.count("head_dim", 256)
    listed = config.section("per_layer_config")
    if not listed.given:
        return kv, config.count("global_head_dim", 512) if kind == FULL else size
    named = (key for key in listed.data if key.isdecimal() and int(key) == layer)
    own = listed.section(next(named, ""))
    return own.count("num_key_value_heads", kv), own.count("head_dim", size)


def _rope(config: JsonFile, kind: str, size: int) -> Rope:
    both = config.section("rope_parameters")
    rope, full = both.section(kind), kind == FULL
    usual = "proportional" if full and not rope.given else "default"
    name = rope.choice("rope_type", usual, {"default": "default", "proportional": "proportional"})
    share = rope.number("partial_rotary_factor", 1.0 if rope.given else 0.25, most=1.0) if full else 1.0
    turning = int(share * size // 2) if name == "proportional" else size // 2
    if turning < 1:
        raise rope.wrong("partial_rotary_factor", "a share of a head in which some values turn")
    return Rope(
        rope.number("rope_theta", 1e6 if full else 1e4),
        size,
        factor=rope.number("factor", 1.0) if name == "proportional" else 1.0,
        turning=turning if turning < size // 2 else None,
    )


def text_names(checkpoint: Checkpoint, rows: tuple[int, ...], source: int) -> Names:
    """rows: of the second table that stand for pictures, sounds and videos, which all take the row `source`."""
    prefix = prefix_of(checkpoint, EMBED)
    layer = f"{prefix}layers.{{i}}."
    return {
        **names.per_layer(prefix, head_of(checkpoint).removesuffix(".weight")),
        "decoder.layers.{i}.scale": lambda i: Plain(layer.replace("{i}", str(i)) + "layer_scalar"),
        "decoder.per_layer_embed": Copied(f"{prefix}embed_tokens_per_layer", rows, source),
    }


def unused_keys(checkpoint: Checkpoint, decoder: Decoder) -> tuple[str, ...]:
    """Keys and values that layers have in some files which read an earlier layer's."""
    layers = f"{prefix_of(checkpoint, EMBED)}layers."
    reading = (
        layer
        for layer in range(decoder.num_layers)
        for mixer in decoder.block(layer).mixers
        if isinstance(mixer, Attention) and mixer.reads == "earlier"
    )
    return tuple(
        f"{layers}{layer}.self_attn.{part}" for layer in reading for part in ("k_proj", "v_proj", "k_norm", "v_norm")
    )
