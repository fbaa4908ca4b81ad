"""Gemma's decoders, which several families have: Gemma 1, Gemma 2 and Gemma 3's text part, with their tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.decoders import is_parted
from edgevlm.checkpoint.families.tensors import Names, PlusOne, Source, prefix_of
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.spec import Attention, Block, Decoder, Mlp, Norm, Rope

EMBED, HEAD = "embed_tokens.weight", "lm_head.weight"
SLIDING, FULL = "sliding_attention", "full_attention"
# Defaults of transformers' config classes. every: of how many layers the last sees all positions.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {"vocab": 256000, "hidden": 3072, "inner": 24576, "layers": 28, "heads": 16, "kv": 16, "context": 8192},
    "gemma2": {
        "vocab": 256000, "hidden": 2304, "inner": 9216, "layers": 26, "heads": 8, "kv": 4, "context": 8192, "every": 2,
        "cap": 50.0, "logit_cap": 30.0,
    },
    "gemma3_text": {
        "vocab": 262208, "hidden": 2304, "inner": 9216, "layers": 26, "heads": 8, "kv": 4, "context": 131072,
        "every": 6,
    },
}  # fmt: skip
KINDS = tuple(_DEFAULTS)


def read_gemma(checkpoint: Checkpoint, config: JsonFile, *, mask: str, default: str, tied: bool) -> Decoder:
    """The decoder of a text_config. mask: `Decoder.mask`. default: the kind where the file names none.

    tied: a head that is stored beside the embedding is then not read, even where the two differ, unless an adapter has
    trained them as two.
    """
    kind = config.choice("model_type", default, {name: name for name in KINDS})
    usual, embed = _DEFAULTS[kind], f"{prefix_of(checkpoint, EMBED)}{EMBED}"
    config.choice("hidden_activation", "gelu_pytorch_tanh", {"gelu_pytorch_tanh": "gelu_tanh"})
    config.choice("hidden_act", "gelu_pytorch_tanh", {"gelu_pytorch_tanh": "", "gelu": ""})  # tanh's form, both
    norm, bias = Norm("rms", config.number("rms_norm_eps", 1e-6)), config.flag("attention_bias", False)
    size, hidden = config.count("head_dim", 256), config.count("hidden_size", usual["hidden"])

    def block(window: int | None) -> Block:
        attention = Attention(
            config.count("num_attention_heads", usual["heads"]),
            config.count("num_key_value_heads", usual["kv"]),
            size,
            bias,
            bias,
            rope="local" if window is not None and kind == "gemma3_text" else "main",
            qk_norm=norm if kind == "gemma3_text" else None,
            scale=None if kind == "gemma" else config.number("query_pre_attn_scalar", 256) ** -0.5,
            softcap=None if kind == "gemma" else cap(config, "attn_logit_softcapping", usual.get("cap")),
            window=window,
        )
        mlp = Mlp(config.count("intermediate_size", usual["inner"]), "gelu_tanh")
        return Block((attention,), mlp, norm, places="pre" if kind == "gemma" else "sandwich")

    kinds = read_kinds(config, usual)
    window = config.count("sliding_window", 4096) if SLIDING in kinds else None
    order = list(dict.fromkeys(kinds))
    return Decoder(
        vocab_size=config.count("vocab_size", usual["vocab"]),
        hidden_size=hidden,
        context_length=config.count("max_position_embeddings", usual["context"]),
        blocks=tuple(block(window if name == SLIDING else None) for name in order),
        layers=tuple(order.index(name) for name in kinds),
        norm=norm,
        ropes=read_ropes(config, size, kinds) if kind == "gemma3_text" else _one_rope(config, size),
        mask=mask,
        embed_scale=rounded(hidden**0.5, checkpoint.dtype(embed)),
        logit_cap=None if kind == "gemma" else cap(config, "final_logit_softcapping", usual.get("logit_cap")),
        tie_embeddings=tied and not is_parted(checkpoint, head_of(checkpoint), embed),
    )


def read_kinds(config: JsonFile, usual: dict[str, Any]) -> list[str]:
    """Each layer's kind: listed, or full every so many layers."""
    count = config.count("num_hidden_layers", usual["layers"], most=limits.LAYERS)
    if "every" not in usual:
        return [FULL] * count
    every = config.count("sliding_window_pattern", usual["every"])
    kinds = config.value("layer_types", [FULL if (i + 1) % every == 0 else SLIDING for i in range(count)])
    if not isinstance(kinds, list) or len(kinds) != count or any(kind not in (SLIDING, FULL) for kind in kinds):
        raise config.wrong("layer_types", f"{count} times '{SLIDING}' or '{FULL}'")
    return kinds


def read_ropes(config: JsonFile, size: int, kinds: list[str]) -> dict[str, Rope]:
    """Of layers that see all, "main", and of the others, "local": one object in transformers 5, four keys before."""
    both = config.section("rope_parameters")
    if both.given:
        full, local = (_rope(both, "rope_theta", both.section(kind), size, theta) for kind, theta in _THETAS.items())
    else:
        full = _rope(config, "rope_theta", config.section("rope_scaling"), size, 1e6)
        local = Rope(config.number("rope_local_base_freq", 1e4), size)
    return {"main": full} | ({"local": local} if SLIDING in kinds else {})


def _one_rope(config: JsonFile, size: int) -> dict[str, Rope]:
    """Gemma 1's and 2's."""
    return {"main": _rope(config, "", config, size, 1e4)}


_THETAS = {FULL: 1e6, SLIDING: 1e4}


def _rope(config: JsonFile, key: str, scaling: JsonFile, size: int, theta: float) -> Rope:
    """One RoPE: its base stands in `scaling`, or beside it in `config`."""
    if scaling is config:  # Gemma 1 and 2
        scaling = config.section("rope_scaling" if config.value("rope_scaling") else "rope_parameters")
    name = "rope_type" if scaling.value("rope_type") else "type"
    kind = scaling.choice(name, "default", {"default": "default", "linear": "linear"})
    base = scaling.number("rope_theta", config.number("rope_theta", theta))
    return Rope(base, size, factor=scaling.number("factor") if kind == "linear" else 1.0)


def cap(config: JsonFile, key: str, usual: float | None) -> float | None:
    """A soft cap; null says that there is none."""
    if key in config.data or usual is None:
        return None if config.value(key) is None else config.number(key)
    return usual


def rounded(value: float, dtype: str) -> float:
    """A number as a tensor of that type holds it: transformers multiplies embeddings by it in their own type."""
    if dtype == "bfloat16":  # to nearest, ties to even
        bits = int(np.float32(value).view(np.uint32))
        return float(np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32))
    return float(np.float16(value) if dtype == "float16" else np.float32(value))


def gemma_names(checkpoint: Checkpoint, decoder: Decoder) -> Names:
    """Norms are stored less one; with norms behind parts, the one before the MLP has another name."""
    prefix = prefix_of(checkpoint, EMBED)
    layer = f"{prefix}layers.{{i}}."

    def norm(name: str) -> Callable[[int], Source]:
        return lambda i: PlusOne(layer.replace("{i}", str(i)) + name)

    own = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
    if decoder.block(0).places == "sandwich":
        own |= {"norm1_after": "post_attention_layernorm", "norm2": "pre_feedforward_layernorm"}
        own |= {"norm2_after": "post_feedforward_layernorm"}
    own |= {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
    head = head_of(checkpoint).removesuffix(".weight")
    return {
        **names.llama(prefix, head),
        **{f"decoder.layers.{{i}}.{ours}": norm(theirs) for ours, theirs in own.items()},
        "decoder.norm": PlusOne(f"{prefix}norm"),
    }


def head_of(checkpoint: Checkpoint) -> str:
    return next((name for name in checkpoint.names() if name.endswith(HEAD)), HEAD)
