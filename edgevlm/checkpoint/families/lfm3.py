"""LFM3's decoder: LFM2's blocks with norms behind their parts, a gate for each head, and layers that see a window."""

from __future__ import annotations

from typing import Any

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import lfm2
from edgevlm.checkpoint.families.tensors import Names, either
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.spec import Attention, Block, Decoder, Mixer, Mlp, Norm, Rope, ShortConv

CONV, FULL, SLIDING = "conv", "full_attention", "sliding_attention"


def read(config: JsonFile, *, tied: bool) -> Decoder:
    """The decoder of a text_config, with the defaults of transformers' Lfm3Config."""
    config.choice("model_type", "lfm3", {"lfm3": "lfm3"})
    if config.flag("conv_bias", False):
        raise config.wrong("conv_bias", "false")
    size, bias = config.count("head_dim", 128), config.flag("attention_bias", False)
    norm = Norm("rms", config.number("norm_eps", 1e-5))
    places = "sandwich" if config.flag("use_sandwich_norm", True) else "pre"
    mlp = Mlp(config.count("intermediate_size", 7680, most=limits.MLP_WIDTH))

    def attention(**options: Any) -> Attention:
        return Attention(
            config.count("num_attention_heads", 16), config.count("num_key_value_heads", 4), size, bias, bias,
            qk_norm=norm, gated="heads" if config.flag("use_attention_gate", True) else None, **options,
        )  # fmt: skip

    kinds = _layers(config)
    mixers: dict[str, Mixer] = {
        CONV: ShortConv(config.count("conv_L_cache", 7, least=2, most=limits.KERNEL)),
        FULL: attention(rope="main"),
        SLIDING: attention(rope="local", window=config.count("sliding_window", 256)),
    }
    order = list(dict.fromkeys(kinds))
    return Decoder(
        vocab_size=config.count("vocab_size", 128_000),
        hidden_size=config.count("hidden_size", 2048),
        context_length=config.count("max_position_embeddings", 128_000),
        blocks=tuple(Block((mixers[kind],), mlp, norm, places) for kind in order),
        layers=tuple(order.index(kind) for kind in kinds),
        norm=norm,
        ropes={name: _rope(config, kind, size) for kind, name in _ROPES.items() if kind in order},
        tie_embeddings=tied,
    )


def _layers(config: JsonFile) -> list[str]:
    count = config.count("num_hidden_layers", 24, most=limits.LAYERS)
    usual = [FULL if i % 4 == 2 else SLIDING if i % 4 == 0 and i > 0 else CONV for i in range(count)]
    kinds = config.value("layer_types", usual)
    known = isinstance(kinds, list) and all(kind in (CONV, FULL, SLIDING) for kind in kinds)
    if not known or len(kinds) != count or FULL not in kinds:
        raise config.wrong("layer_types", f"{count} of '{CONV}', '{SLIDING}' and '{FULL}', with one of the last")
    return list(kinds)


_ROPES = {FULL: "main", SLIDING: "local"}


def _rope(config: JsonFile, kind: str, size: int) -> Rope:
    """Of layers of one kind. Proportional: the first so many frequencies of a whole head turn."""
    ropes = config.section("rope_parameters")
    if not ropes.given:
        return Rope(1e6, size, turning=size // 4) if kind == FULL else Rope(1e4, size)
    rope = ropes.section(kind)
    if not rope.given:
        raise ropes.wrong(kind, "an object with rope_type and rope_theta")
    base = rope.number("rope_theta", 1e6)
    if rope.choice("rope_type", "default", {"default": "default", "proportional": "proportional"}) == "default":
        return Rope(base, size)
    turning = int(rope.number("partial_rotary_factor", 1.0) * size // 2)
    if not 0 < turning <= size // 2:
        raise rope.wrong("partial_rotary_factor", "a number up to 1")
    return Rope(base, size, factor=rope.number("factor", 1.0), turning=turning)


def tensor_names(checkpoint: Checkpoint, prefix: str, head: str, decoder: Decoder) -> Names:
    layer = f"{prefix}layers.{{i}}."
    return {
        **lfm2.tensor_names(prefix, head, decoder),
        **{f"decoder.layers.{{i}}.{ours}": layer + theirs for ours, theirs in _LAYER.items()},
        "decoder.layers.{i}.o_gate": layer + f"self_attn.{either(checkpoint, 'gate_proj', 'g_proj')}",
    }


_LAYER = {
    "norm1_after": "post_operator_norm",
    "norm2_after": "post_ffn_norm",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}
