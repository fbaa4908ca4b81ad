"""GLM-4's decoder (arXiv 2406.12793) under M-RoPE: norms on both sides of each part, RoPE over pairs of a part of each
head, gate and up in one tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families.decoders import is_tied, mrope_sections, read_decoder, text_of
from edgevlm.checkpoint.families.names import llama
from edgevlm.checkpoint.families.tensors import Names, Source, Split, prefix_of
from edgevlm.checkpoint.families.transforms import Halves
from edgevlm.io.json import JsonFile
from edgevlm.models.spec import Attention, Decoder

# An embedding of the same name may stand in a layer behind the last, which guesses further tokens.
_MARK = "layers.0.input_layernorm.weight"


def read(checkpoint: Checkpoint, config: JsonFile, name: str, bias: bool, usual: dict[str, Any]) -> Decoder:
    """name: the model_type of text_config. bias: of q, k and v, whatever the file says. usual: as of `read_decoder`."""
    text = text_of(config)
    text.choice("model_type", name, {name: name})
    embed, tied = f"{prefix_of(checkpoint, _MARK)}embed_tokens.weight", text.flag("tie_word_embeddings", False)
    decoder = read_decoder(
        text.without("attention_bias"),
        tied=is_tied(checkpoint, config, text, "lm_head.weight", embed, tied),
        kind="qwen2" if bias else "llama",
        sections=mrope_sections(text, usual=[8, 12, 12]),
        partial=True,
        eps=1e-5,
        **usual,
    )
    return replace(decoder, blocks=(replace(decoder.block(0), places="sandwich"),))


def tensor_names(checkpoint: Checkpoint, decoder: Decoder) -> Names:
    prefix, (attention,) = prefix_of(checkpoint, _MARK), decoder.block(0).mixers
    assert isinstance(attention, Attention)
    layers, inner = f"{prefix}layers.", decoder.block(0).mlp.size
    turned = decoder.ropes["main"].size

    def heads(part: str) -> Callable[[int], Source]:
        return lambda i: Halves(f"{layers}{i}.self_attn.{part}_proj", attention.head_dim, turned)

    def rows(start: int) -> Callable[[int], Source]:
        return lambda i: Split(f"{layers}{i}.mlp.gate_up_proj", start, 2 * inner)

    return {
        **llama(prefix),
        **{f"decoder.layers.{{i}}.{part}": heads(part) for part in "qk"},
        "decoder.layers.{i}.gate": rows(0),
        "decoder.layers.{i}.up": rows(inner),
        "decoder.layers.{i}.norm1_after": f"{layers}{{i}}.post_self_attn_layernorm",
        "decoder.layers.{i}.norm2_after": f"{layers}{{i}}.post_mlp_layernorm",
    }


def unused(checkpoint: Checkpoint, decoder: Decoder) -> tuple[str, ...]:
    """The layer that guesses further tokens."""
    return (f"{prefix_of(checkpoint, _MARK)}layers.{decoder.num_layers}.",)
