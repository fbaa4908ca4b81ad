"""Gemma 3n's decoder: several streams of states, maps beside the mixers, gates of which few count, and, as Gemma 4's,
per-layer embeddings and layers that read others' keys and values."""

from __future__ import annotations

from statistics import NormalDist

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.decoders import is_parted
from edgevlm.checkpoint.families.gemma_text import EMBED, FULL, cap, head_of, read_kinds, read_ropes, rounded
from edgevlm.checkpoint.families.tensors import Names, Plain, prefix_of
from edgevlm.checkpoint.families.transforms import Extended
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.spec import Attention, Block, Decoder, Mlp, Norm


def read_text(checkpoint: Checkpoint, config: JsonFile, *, tied: bool) -> Decoder:
    """The decoder of a text_config. tied: as `read_gemma`'s."""
    config.choice("model_type", "gemma3n_text", {"gemma3n_text": ""})
    config.choice("hidden_activation", "gelu_pytorch_tanh", {"gelu_pytorch_tanh": ""})
    config.require(False, "attention_bias", "use_bidirectional_attention")
    config.require(True, "altup_correct_scale")
    config.choice("altup_active_idx", 0, {0: ""})
    kinds = read_kinds(config, {"layers": 35, "every": 5})
    count, norm = len(kinds), Norm("rms", config.number("rms_norm_eps", 1e-6))
    shared = config.count("num_kv_shared_layers", 15, least=0, most=count)
    size, window = config.count("head_dim", 256), config.count("sliding_window", 512)
    inner = config.value("intermediate_size", 16384)
    sizes = config.counts("intermediate_size", ()) if isinstance(inner, list) else (inner,) * count
    hidden, cutoffs, found = config.count("hidden_size", 2048), _cutoffs(config, count), list[Block]()
    if len(sizes) != count:
        raise config.wrong("intermediate_size", f"one number, or {count}")
    for layer, kind in enumerate(kinds):
        reads, full = layer >= count - shared, kind == FULL
        attention = Attention(
            config.count("num_attention_heads", 8),
            config.count("num_key_value_heads", 2),
            size,
            rope="main" if full else "local",
            qk_norm=norm,
            scale=1.0,
            window=None if full else window,
            reads="earlier" if reads else "self",
            v_norm=None if reads else Norm("rms", norm.eps, weight=False),
        )
        mlp = Mlp(sizes[layer], "gelu_tanh", cutoff=cutoffs[layer])
        found.append(Block((attention,), mlp, norm, places="sandwich", laurel=config.count("laurel_rank", 64)))
    width, blocks = config.count("hidden_size_per_layer_input", 256), tuple(dict.fromkeys(found))
    embed = f"{prefix_of(checkpoint, EMBED)}{EMBED}"
    return Decoder(
        vocab_size=config.count("vocab_size", 262400),
        hidden_size=hidden,
        context_length=config.count("max_position_embeddings", 32768),
        blocks=blocks,
        layers=tuple(map(blocks.index, found)),
        norm=norm,
        ropes=read_ropes(config, size, kinds),
        embed_scale=rounded(hidden**0.5, checkpoint.dtype(embed)),
        logit_cap=cap(config, "final_logit_softcapping", 30.0),
        per_layer=width,
        per_layer_scale=rounded(width**0.5, checkpoint.dtype(embed)),
        streams=config.count("altup_num_inputs", 4, least=2, most=limits.STREAMS),
        tie_embeddings=tied and not is_parted(checkpoint, head_of(checkpoint), embed),
    )


def _cutoffs(config: JsonFile, count: int) -> list[float | None]:
    """By layer: the share of a gate's values that do not count, were they of a normal distribution, in deviations."""
    shares = config.value("activation_sparsity_pattern", [0.95] * 10 + [0.0] * (count - 10) if count > 10 else 0.0)
    shares = shares if isinstance(shares, list) else [shares] * count
    if len(shares) != count or not all(type(share) in (int, float) and 0 <= share < 1 for share in shares):
        raise config.wrong("activation_sparsity_pattern", f"{count} numbers from 0 to less than 1")
    return [NormalDist().inv_cdf(share) if share else None for share in shares]


def text_names(checkpoint: Checkpoint, rows: int) -> Names:
    """rows: of the second table; further tokens take its first."""
    prefix = prefix_of(checkpoint, EMBED)
    layer = f"{prefix}layers.{{i}}."
    own = {
        "laurel_in": "laurel.linear_left", "laurel_out": "laurel.linear_right",
        "laurel_norm": "laurel.post_laurel_norm",
        "router": "altup.modality_router", "router_norm": "altup.router_norm", "predict": "altup.prediction_coefs",
        "correct": "altup.correction_coefs",
    }  # fmt: skip
    streams = {"spread": "altup_projections", "join": "altup_unembed_projections"}
    return {
        **names.per_layer(prefix, head_of(checkpoint).removesuffix(".weight")),
        **{f"decoder.layers.{{i}}.{ours}": f"{layer}{theirs}" for ours, theirs in own.items()},
        "decoder.layers.{i}.first_scale": lambda i: Plain(layer.format(i=i) + "altup.correct_output_scale"),
        **{
            f"decoder.{ours}_{n}": f"{prefix}{theirs}.{n - 1}"
            for ours, theirs in streams.items()
            for n in range(1, limits.STREAMS)
        },
        "decoder.per_layer_embed": Extended(f"{prefix}embed_tokens_per_layer", rows),
    }
