"""Qwen3.5's decoder: layers of gated delta rule, and every fourth of gated attention with RoPE over part of a head."""

from __future__ import annotations

from collections.abc import Callable

from edgevlm.checkpoint.families.names import llama
from edgevlm.checkpoint.families.tensors import Names, Plain, PlusOne, Source
from edgevlm.checkpoint.families.transforms import HeadRows, MinusExp
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.spec import Attention, Block, Decoder, DeltaRule, Mlp, Norm, Rope

KINDS = {"linear_attention": 0, "full_attention": 1}  # of layers -> blocks


def read(config: JsonFile, *, tied: bool) -> Decoder:
    """The decoder of a text_config, with the defaults of transformers' Qwen3_5TextConfig."""
    config.choice("model_type", "qwen3_5_text", {"qwen3_5_text": "qwen3_5"})
    config.choice("hidden_act", "silu", {"silu": "silu"})
    if config.flag("attention_bias", False):
        raise config.wrong("attention_bias", "false")
    norm, mlp = Norm("rms", config.number("rms_norm_eps", 1e-6)), Mlp(config.count("intermediate_size", 12288))
    size = config.count("head_dim", 256)
    attention = Attention(
        config.count("num_attention_heads", 16),
        config.count("num_key_value_heads", 4),
        size,
        rope="main",
        qk_norm=norm,
        gated="values",
    )
    rule = DeltaRule(
        key_heads=config.count("linear_num_key_heads", 16),
        value_heads=config.count("linear_num_value_heads", 32),
        key_dim=config.count("linear_key_head_dim", 128),
        value_dim=config.count("linear_value_head_dim", 128),
        kernel=config.count("linear_conv_kernel_dim", 4, least=2, most=limits.KERNEL),
        norm=norm,
    )
    return Decoder(
        vocab_size=config.count("vocab_size", 248320),
        hidden_size=config.count("hidden_size", 4096),
        context_length=config.count("max_position_embeddings", 32768),
        blocks=(Block((rule,), mlp, norm), Block((attention,), mlp, norm)),
        layers=_layers(config),
        norm=norm,
        ropes={"main": _rope(config, size)},
        tie_embeddings=tied,
    )


def _rope(config: JsonFile, size: int) -> Rope:
    """Over the first quarter of a head, where config.json says nothing else."""
    rope = config.section("rope_parameters")
    rope = rope if rope.given else config.section("rope_scaling")
    rope.choice("rope_type", "default", {"default": "default", "mrope": "default"})
    share = rope.value("partial_rotary_factor", config.value("partial_rotary_factor", 0.25))
    if not isinstance(share, float | int) or isinstance(share, bool) or not 0 < share <= 1:
        raise rope.wrong("partial_rotary_factor", "a number up to 1")
    sections = rope.value("mrope_section", [11, 11, 10])
    if not (isinstance(sections, list) and len(sections) == 3 and all(type(n) is int and n > 0 for n in sections)):
        raise rope.wrong("mrope_section", "three whole numbers")
    theta = rope.number("rope_theta", config.number("rope_theta", 10000.0))
    return Rope(theta, int(size * share), sections=tuple(sections), interleaved=True)


def _layers(config: JsonFile) -> tuple[int, ...]:
    count, types = config.count("num_hidden_layers", 32, most=limits.LAYERS), config.value("layer_types")
    if types is None:
        every = config.count("full_attention_interval", 4)
        types = ["linear_attention" if (layer + 1) % every else "full_attention" for layer in range(count)]
    known = isinstance(types, list) and all(isinstance(kind, str) and kind in KINDS for kind in types)
    if not known or len(types) != count or "full_attention" not in types:
        raise config.wrong("layer_types", f"{count} of {' and '.join(map(repr, KINDS))}, with one of the latter")
    return tuple(KINDS[kind] for kind in types)


def tensor_names(prefix: str, head: str, decoder: Decoder) -> Names:
    (rule,), (attention,) = (decoder.blocks[KINDS[kind]].mixers for kind in KINDS)
    assert isinstance(rule, DeltaRule) and isinstance(attention, Attention)
    layers, kernel = f"{prefix}layers.", (rule.channels, 1, rule.kernel)

    def query(part: int) -> Callable[[int], Source]:
        return lambda i: HeadRows(f"{layers}{i}.self_attn.q_proj", attention.heads, part, 2)

    def norm(stem: str) -> Callable[[int], Source]:
        return lambda i: PlusOne(f"{layers}{i}.{stem}")

    return {
        **llama(prefix, head),
        **{f"decoder.layers.{{i}}.{ours}": norm(theirs) for ours, theirs in _NORMS.items()},
        **{f"decoder.layers.{{i}}.{ours}": f"{layers}{{i}}.linear_attn.{theirs}" for ours, theirs in _RULE.items()},
        "decoder.layers.{i}.q": query(0),
        "decoder.layers.{i}.o_gate": query(1),
        "decoder.layers.{i}.conv": lambda i: Plain(f"{layers}{i}.linear_attn.conv1d", kernel),
        "decoder.layers.{i}.decay": lambda i: MinusExp(f"{layers}{i}.linear_attn.A_log"),
        "decoder.norm": PlusOne(f"{prefix}norm"),
    }


_NORMS = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}
_RULE = {
    "qkv": "in_proj_qkv",
    "z": "in_proj_z",
    "rate": "in_proj_b",
    "step": "in_proj_a",
    "step_bias": "dt_bias",
    "delta_norm": "norm",
    "out": "out_proj",
}
