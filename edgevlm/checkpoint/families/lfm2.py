"""LFM2's decoder (arXiv 2511.23404): short gated convolutions among layers of attention."""

from __future__ import annotations

from collections.abc import Callable

from edgevlm.checkpoint.families.decoders import read_rope
from edgevlm.checkpoint.families.names import llama
from edgevlm.checkpoint.families.tensors import Names, Plain, Source, Split
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.spec import Attention, Block, Decoder, Mlp, Norm, ShortConv

KINDS = {"conv": 0, "full_attention": 1}  # of layers -> blocks


def read(config: JsonFile, *, tied: bool) -> Decoder:
    """The decoder of a text_config, with the defaults of transformers' Lfm2Config."""
    config.choice("model_type", "lfm2", {"lfm2": "lfm2"})
    if config.flag("conv_bias", False):
        raise config.wrong("conv_bias", "false")
    hidden, heads = config.count("hidden_size", 2560), config.count("num_attention_heads", 32)
    size = config.count("head_dim", max(1, hidden // heads))
    norm, mlp = Norm("rms", config.number("norm_eps", 1e-5)), Mlp(_inner(config))
    attention = Attention(heads, config.count("num_key_value_heads", 8), size, rope="main", qk_norm=norm)
    conv = ShortConv(config.count("conv_L_cache", 3, least=2, most=limits.KERNEL))
    return Decoder(
        vocab_size=config.count("vocab_size", 65536),
        hidden_size=hidden,
        context_length=config.count("max_position_embeddings", 128_000),
        blocks=(Block((conv,), mlp, norm), Block((attention,), mlp, norm)),
        layers=_layers(config),
        norm=norm,
        ropes={"main": read_rope(config, size, 1e6)},
        tie_embeddings=tied,
    )


def _inner(config: JsonFile) -> int:
    """The MLP's own size: two thirds of what the config says, times a factor, rounded up to a multiple."""
    key = "intermediate_size" if config.value("block_ff_dim") is None else "block_ff_dim"
    size = config.count(key, 12288, most=limits.MLP_WIDTH)
    if not config.flag("block_auto_adjust_ff_dim", True):
        return size
    size = int(config.number("block_ffn_dim_multiplier", 1.0) * int(2 * size / 3))
    multiple = config.count("block_multiple_of", 256, most=limits.MLP_WIDTH)
    return -(-size // multiple) * multiple


def _layers(config: JsonFile) -> tuple[int, ...]:
    count, types = config.count("num_hidden_layers", 32, most=limits.LAYERS), config.value("layer_types")
    if types is None:
        full = config.value("full_attn_idxs", list(range(count)))
        if not isinstance(full, list):
            raise config.wrong("full_attn_idxs", "a list of layers")
        types = ["full_attention" if layer in full else "conv" for layer in range(count)]
    known = isinstance(types, list) and all(isinstance(kind, str) and kind in KINDS for kind in types)
    if not known or len(types) != count or "full_attention" not in types:
        raise config.wrong("layer_types", f"{count} of 'conv' and 'full_attention', with one of the latter at least")
    return tuple(KINDS[kind] for kind in types)


def tensor_names(prefix: str, head: str, decoder: Decoder) -> Names:
    layers, width = f"{prefix}layers.", decoder.hidden_size
    (conv,) = decoder.blocks[KINDS["conv"]].mixers
    assert isinstance(conv, ShortConv)
    kernel = (width, 1, conv.kernel)

    def rows(start: int) -> Callable[[int], Source]:
        return lambda i: Split(f"{layers}{i}.conv.in_proj", start, 3 * width)

    return {
        **llama(prefix, head),
        **{f"decoder.layers.{{i}}.{ours}": f"{layers}{{i}}.{theirs}" for ours, theirs in _LAYER.items()},
        **{f"decoder.layers.{{i}}.{part}": rows(number * width) for number, part in enumerate("bcx")},
        "decoder.layers.{i}.conv": lambda i: Plain(f"{layers}{i}.conv.conv", kernel),
        "decoder.norm": f"{prefix}embedding_norm",
    }


_LAYER = {
    "norm1": "operator_norm",
    "out": "conv.out_proj",
    "o": "self_attn.out_proj",
    "q_norm": "self_attn.q_layernorm",
    "k_norm": "self_attn.k_layernorm",
    "norm2": "ffn_norm",
    "gate": "feed_forward.w1",
    "up": "feed_forward.w3",
    "down": "feed_forward.w2",
}
