"""HunyuanOCR's decoder: Llama's, whose halves of a head turn by axes of their own (xD-RoPE), with norms behind that."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.decoders import is_tied, read_decoder, text_of
from edgevlm.checkpoint.families.tensors import Names, prefix_of
from edgevlm.io.json import JsonFile
from edgevlm.models.spec import Attention, Decoder, Rope

TEXT: dict[str, Any] = {"vocab": 290943, "eps": 1e-5}
KINDS = {"default": "default", "dynamic": "dynamic", "xdrope": "dynamic"}


def read(checkpoint: Checkpoint, config: JsonFile) -> Decoder:
    text, embed = text_of(config), f"{prefix_of(checkpoint, 'embed_tokens.weight')}embed_tokens.weight"
    for ours, older in (("head_dim", "attention_head_dim"), ("vocab_size", "org_vocab_size")):
        text = text if text.value(ours) is not None or text.value(older) is None else text.renamed(**{ours: older})
        if text.value(older, text.value(ours)) != text.value(ours):
            raise text.wrong(older, f"the {ours} beside it")
    top = config.without("tie_word_embeddings") if text.flag("tie_word_embeddings", True) else config
    tied = is_tied(checkpoint, top, text, "lm_head.weight", embed, default=True)
    plain = text.without("rope_scaling").without("rope_parameters")
    decoder = read_decoder(plain, tied=tied, kind="llama", **TEXT)
    (attention,) = decoder.block(0).mixers
    assert isinstance(attention, Attention)
    attention = replace(attention, qk_norm=decoder.norm, norm_after=True, second_rope="second")
    block, ropes = replace(decoder.block(0), mixers=(attention,)), _ropes(text, decoder.ropes["main"])
    return replace(decoder, blocks=(block,), ropes=ropes, places="number")


def _ropes(text: JsonFile, plain: Rope) -> dict[str, Rope]:
    """One for each half of a head: transformers deals sections of twice the frequencies over both halves of cosines."""
    rope = text.section("rope_scaling") if text.value("rope_scaling") else text.section("rope_parameters")
    key, half = "mrope_section" if rope.value("mrope_section") else "xdrope_section", plain.size // 2
    sections = rope.value(key)
    if not (
        isinstance(sections, list) and len(sections) in (3, 4) and all(type(n) is int and n >= 0 for n in sections)
    ):
        raise rope.wrong(key, "three or four whole numbers")
    kind = rope.choice("rope_type" if rope.value("rope_type") else "type", "default", KINDS)
    alpha = rope.number("alpha", 0) if kind == "dynamic" else 0
    theta = rope.number("rope_theta", plain.theta) * (alpha ** (plain.size / (plain.size - 2)) if alpha else 1)
    ends = [0, *accumulate(2 * n for n in sections)]
    first = tuple(min(end, half) - min(start, half) for start, end in pairwise(ends))
    second = tuple(2 * n - m for n, m in zip(sections, first, strict=True))
    return {name: replace(plain, theta=theta, sections=own) for name, own in (("main", first), ("second", second))}


def tensor_names(checkpoint: Checkpoint) -> Names:
    text = prefix_of(checkpoint, "embed_tokens.weight")
    attention = f"{text}layers.{{i}}.self_attn."
    return {
        **names.llama(text),
        "decoder.layers.{i}.q_norm": f"{attention}query_layernorm",
        "decoder.layers.{i}.k_norm": f"{attention}key_layernorm",
    }
