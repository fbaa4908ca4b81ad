"""Decoders of text_config: Llama's kind, and Qwen2, Qwen3, Mistral, Ministral and Granite, the same with other options.

Options and defaults follow transformers' config classes: a field that config.json leaves out has the default there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families.tensors import Names, times
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Linear, Normalize
from edgevlm.models.spec import Attention, Block, Decoder, Mlp, Norm, Rope, RopeScaling


def read_decoder(
    config: JsonFile,
    *,
    tied: bool,
    kind: str | None = None,
    usual: str = "llama",
    sections: tuple[int, ...] = (),
    **more: Any,
) -> Decoder:
    """The decoder of a text_config.

    kind: of `_DEFAULTS`, where the family knows it; None is the config's own model_type, or `usual` where it has none.
    sections: M-RoPE's frequencies per position axis, for families that have it.
    more: what the family's own config class takes for fields that the file leaves out, by the names of `_DEFAULTS`.
    """
    kind = kind or config.choice("model_type", usual, {name: name for name in DECODERS})
    config.choice("hidden_act", "silu", {"silu": "silu"})
    if config.flag("use_sliding_window", False):
        raise config.wrong("use_sliding_window", "false")
    defaults: dict[str, Any] = {"hidden": 4096, "heads": 32, "layers": 32, "eps": 1e-6 if config.given else 1e-5}
    defaults |= _DEFAULTS[kind] | more
    hidden, heads = (
        config.count("hidden_size", defaults["hidden"]),
        config.count("num_attention_heads", defaults["heads"]),
    )
    eps = config.number("rms_norm_eps", defaults["eps"])
    # null means as many as query heads, in every config class.
    kv_heads = heads if "num_key_value_heads" in config.data else defaults.get("kv_heads", heads)
    size = config.count("head_dim", defaults.get("head_dim") or max(1, hidden // heads))
    norm, attention_bias = Norm("rms", eps), config.flag("attention_bias", False)
    attention = Attention(
        heads,
        config.count("num_key_value_heads", kv_heads),
        size,
        bias=attention_bias or kind == "qwen2",
        out_bias=attention_bias and kind != "qwen2",
        rope="main",
        qk_norm=norm if kind == "qwen3" else None,
    )
    mlp = Mlp(config.count("intermediate_size", defaults["inner"]), bias=config.flag("mlp_bias", False))
    layers = config.count("num_hidden_layers", defaults["layers"], most=limits.LAYERS)
    context = config.count("max_position_embeddings", defaults["context"])
    rope = read_rope(config, size, defaults["theta"], sections, defaults.get("partial", False))
    if rope.divisors:  # beyond, others take their place, also for what stands before
        context = min(context, _original_context(config))
    if kind == "ministral3":
        context = _unscaled_context(config, rope, context)
    if kind in ("mistral", "ministral3") and (window := _window(config, kind)) is not None and window < context:
        attention = replace(attention, window=window)
    return Decoder(
        vocab_size=config.count("vocab_size", defaults["vocab"]),
        hidden_size=hidden,
        context_length=context,
        blocks=(Block((attention,), mlp, norm),),
        layers=(0,) * layers,
        norm=norm,
        ropes={"main": rope},
        tie_embeddings=tied,
    )


def _window(config: JsonFile, kind: str) -> int | None:
    """null is none; left out it is the config class's."""
    if "sliding_window" in config.data or kind == "ministral3":
        return None if config.value("sliding_window") is None else config.count("sliding_window")
    return 4096


def _unscaled_context(config: JsonFile, rope: Rope, context: int) -> int:
    """Positions up to which queries are not scaled: from the original context on they are, which no graph does."""
    if rope.scaling is None or rope.scaling.kind != "yarn":
        raise config.wrong("rope_parameters", "YaRN's")
    config.section("rope_parameters").number("llama_4_scaling_beta")
    return min(context, rope.scaling.original_context)


_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"inner": 11008, "vocab": 32000, "context": 2048, "theta": 10000},
    "qwen2": {"inner": 22016, "vocab": 151936, "context": 32768, "theta": 10000},
    "qwen3": {"inner": 22016, "vocab": 151936, "context": 32768, "theta": 10000, "head_dim": 128},
    "mistral": {"inner": 14336, "vocab": 32000, "context": 131072, "theta": 10000, "kv_heads": 8},
    "ministral3": {
        "inner": 14336, "vocab": 131072, "context": 262144, "theta": 1e6, "kv_heads": 8, "head_dim": 128, "layers": 34,
        "eps": 1e-5,
    },
    "granite": {"inner": 11008, "vocab": 32000, "context": 2048, "theta": 10000},
}  # fmt: skip
DECODERS = tuple(_DEFAULTS)  # by their model_type
MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")


def fold_multipliers(
    text: JsonFile, spec: ModelSpec, names: Names, usual: Mapping[str, float] | None, raw: bool = False
) -> Names:
    """`names` with a Granite's four multipliers inside its weights, which makes it a Llama; others' as they are.

    It multiplies embeddings whatever they are of: so does the projector's last step with weights, and a newline.
    usual: what the multipliers are where the file leaves them out, in a family whose decoders all have them.
    raw: it does not multiply image features.
    """
    d = spec.decoder
    if text.value("model_type") != "granite" and usual is None:
        return names
    embedding, residual, attention, logits = (text.number(key, (usual or {}).get(key, 1.0)) for key in MULTIPLIERS)
    if min(embedding, logits) <= 0:
        raise text.wrong("embedding_multiplier" if embedding <= 0 else "logits_scaling", "more than 0")
    (mixer,) = d.block(0).mixers
    assert isinstance(mixer, Attention)
    layer, last = "decoder.layers.{i}.", [s.name for s in spec.projector if isinstance(s, Linear | Normalize)][-1:]
    features = [] if raw else [*(f"projector.{name}" for name in last), "newline"]
    factors = {
        **dict.fromkeys(("decoder.embed", *features), embedding),
        f"{layer}q": attention * mixer.head_dim**0.5,  # RoPE commutes with it
        **dict.fromkeys((f"{layer}o", f"{layer}down"), residual),
        "decoder.norm": 1 / (logits * (embedding if d.tie_embeddings else 1)),
    }
    return {name: times(source, factors[name]) if name in factors else source for name, source in names.items()}


def text_of(config: JsonFile) -> JsonFile:
    """The decoder's fields: of text_config, or in older files of the config itself."""
    nested = config.section("text_config")
    return nested if nested.given else config.without("model_type")


def mrope_sections(text: JsonFile, usual: list[int] | None = None) -> tuple[int, ...]:
    """Frequencies of M-RoPE's axes: time, row, column. usual: those of a family whose files may leave them out."""
    keys = ("rope_scaling", "rope_parameters")
    for found in (*(text.section(key).value("mrope_section") for key in keys), usual):
        if isinstance(found, list) and len(found) == 3 and all(type(n) is int and n > 0 for n in found):
            return tuple(found)
    raise text.wrong("rope_parameters", "an object with mrope_section, three whole numbers")


def read_rope(config: JsonFile, size: int, theta: float, sections: tuple[int, ...] = (), partial: bool = False) -> Rope:
    """Base and scaling: transformers 4 has rope_theta beside rope_scaling, transformers 5 both in rope_parameters.

    partial: whether the model's class knows of a RoPE over a part of each head.
    """
    rope = config.section("rope_scaling") if config.value("rope_scaling") else config.section("rope_parameters")
    kind = rope.value("rope_type") or rope.value("type") or "default"
    # Dynamic scaling changes nothing up to max_position_embeddings, which is as far as a bundle's context goes.
    if kind not in ("default", "dynamic", "llama3", "yarn", *_LONG, *(("mrope",) if sections else ())):
        raise rope.wrong(
            "rope_type" if rope.value("rope_type") else "type", "'default', 'llama3', 'yarn' or 'longrope'"
        )
    share = rope.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    if share != 1.0 and not (partial and 0 < share < 1):
        expected = "a number up to 1" if partial else "1, for RoPE over whole heads"
        raise (rope if "partial_rotary_factor" in rope.data else config).wrong("partial_rotary_factor", expected)
    size = int(size * share)
    base = rope.number("rope_theta", config.number("rope_theta", theta))
    if kind == "yarn":
        return Rope(base, size, _yarn(rope), sections)
    if kind in _LONG:
        return Rope(base, size, None, sections, divisors=_short(rope, size // 2), gain=_gain(config, rope))
    if kind != "llama3":
        return Rope(base, size, sections=sections)
    scaling = RopeScaling(
        rope.number("factor"), rope.number("low_freq_factor"), rope.number("high_freq_factor"),
        original_context=rope.count("original_max_position_embeddings"),
    )  # fmt: skip
    if scaling.low_freq_factor >= scaling.high_freq_factor:
        raise rope.wrong("low_freq_factor", "less than high_freq_factor")
    return Rope(base, size, scaling, sections)


_LONG = ("longrope", "su")  # its name in transformers, and in older files


def _short(rope: JsonFile, count: int) -> tuple[float, ...]:
    """LongRoPE's divisors of frequencies within the original context."""
    found = rope.value("short_factor")
    good = isinstance(found, list) and len(found) == count and all(type(n) in (int, float) and n > 0 for n in found)
    if not good:
        raise rope.wrong("short_factor", f"a list of {count} numbers above 0")
    return tuple(float(n) for n in found)


def _gain(config: JsonFile, rope: JsonFile) -> float:
    """LongRoPE's factor of cosines and sines, of _compute_longrope_parameters."""
    if rope.value("attention_factor") is not None:
        return rope.number("attention_factor")
    original = _original_context(config)
    factor = rope.number("factor", config.count("max_position_embeddings", original) / original)
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def _original_context(config: JsonFile) -> int:
    key, rope = "original_max_position_embeddings", config.section("rope_parameters")
    return (rope if rope.value(key) is not None else config).count(key)


def _yarn(rope: JsonFile) -> RopeScaling:
    """Of _compute_yarn_parameters; one that makes cosines and sines larger is refused."""
    slow, fast = rope.number("beta_slow", 1.0), rope.number("beta_fast", 32.0)
    rope.require(True, "truncate")
    same = bool(rope.value("mscale")) and rope.value("mscale") == rope.value("mscale_all_dim")
    if rope.value("attention_factor", 1 if same else None) != 1:
        raise rope.wrong("attention_factor", "1, or mscale and mscale_all_dim that are equal")
    if slow >= fast:
        raise rope.wrong("beta_slow", "less than beta_fast")
    original = rope.count("original_max_position_embeddings")
    return RopeScaling(rope.number("factor"), slow, fast, original, kind="yarn")


def is_parted(checkpoint: Checkpoint, head: str, embed: str) -> bool:
    """Whether an adapter has trained embedding and head of a tied model as two copies."""
    adapter = checkpoint.adapter
    trained = adapter is not None and (adapter.changes(head) or adapter.changes(embed))
    return trained and not checkpoint.same(head, embed)


def is_tied(
    checkpoint: Checkpoint, config: JsonFile, text: JsonFile, head: str, embed: str, default: bool = False
) -> bool:
    """As transformers: the top-level field decides, except that a stored head which differs stays a head.

    A file without a head can only mean a tied one, where either config says so; nanoVLM's keep the head of the two.
    default: the top-level field's.
    """
    names, tied = checkpoint.names(), config.flag("tie_word_embeddings", default)
    if head not in names:
        return tied or text.flag("tie_word_embeddings", False)
    return tied and (embed not in names or checkpoint.same(head, embed))
