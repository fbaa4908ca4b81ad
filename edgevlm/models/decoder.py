"""Every decoder: a walk over its blocks. Llama, Qwen, Gemma, LFM2, OPT and BART differ in their spec."""

from __future__ import annotations

from edgevlm.models.blocks import mask_input, mixer_name, residual
from edgevlm.models.ops import Ops, X
from edgevlm.models.spec import Attention, Decoder, DeltaRule, Mixer, ShortConv, head_name, state_name


def embed_tokens(ops: Ops, ids: X, d: Decoder) -> X:
    """Ids (S,) to embeddings (S, D), with zeros behind them where image tokens have more levels of features."""
    x = ops.embed(ids, "decoder.embed", d.vocab_size, d.hidden_size)
    x = ops.mul(x, d.embed_scale) if d.embed_scale != 1.0 else x
    return ops.widen(x, d.embed_width) if d.deepstack else x


def memory(ops: Ops, x: X, d: Decoder) -> dict[str, X]:
    """Keys and values, by state, of mixers that read the encoder's output or the picture's features: made once."""
    found = {}
    for layer in range(d.num_layers):
        for m, a in enumerate(d.block(layer).mixers):
            if isinstance(a, Attention) and a.reads == "memory":
                w, rows = mixer_name(f"decoder.layers.{layer}", m), a.kv_heads * a.head_dim
                k, v = ops.linear(x, (f"{w}.k", rows), (f"{w}.v", rows), bias=a.bias)
                k = ops.heads(k, a.kv_heads, a.head_dim)
                found[f"{state_name(layer, m)}.key"] = ops.norm(k, f"{w}.k_norm", a.qk_norm) if a.qk_norm else k
                found[f"{state_name(layer, m)}.value"] = ops.heads(v, a.kv_heads, a.head_dim)
    return found


def decoder(ops: Ops, x: X, d: Decoder) -> X:
    """Embeddings (S, D), and behind each what its levels add, to logits of the last position.

    What is kept for later calls stays in the backend's states.
    """
    x, *levels = ops.split(x, 1 + d.deepstack, d.hidden_size) if d.deepstack else (x,)
    if d.learned_positions:
        table = ops.embed(ops.input("positions"), "decoder.positions", d.learned_positions, d.hidden_size)
        x = ops.add(x, table)
    x = ops.norm(x, "decoder.embed_norm", d.embed_norm) if d.embed_norm else x
    for layer in range(d.num_layers):
        x = _layer(ops, x, layer, d)
        if layer < d.deepstack:
            x = ops.add(x, levels[layer])  # zeros where a position is no image token
    x = ops.last(ops.norm(x, "decoder.norm", d.norm) if d.norm else x)
    logits = ops.linear(x, (head_name(d), d.vocab_size))[0]
    return ops.mul(ops.act(ops.mul(logits, 1 / d.logit_cap), "tanh"), d.logit_cap) if d.logit_cap else logits


def _layer(ops: Ops, x: X, layer: int, d: Decoder) -> X:
    block, w = d.block(layer), f"decoder.layers.{layer}"
    for m, mixer in enumerate(block.mixers):
        x = residual(ops, x, block, mixer_name(w, m), 1, lambda h, m=m, mixer=mixer: _mix(ops, h, layer, m, mixer, d))  # type: ignore[misc]
    return residual(ops, x, block, w, 2, lambda h: ops.mlp(h, w, block.mlp, d.hidden_size))


def _mix(ops: Ops, x: X, layer: int, m: int, mixer: Mixer, d: Decoder) -> X:
    w, state = mixer_name(f"decoder.layers.{layer}", m), state_name(layer, m)
    if isinstance(mixer, ShortConv):
        return ops.short_conv(x, w, mixer, d.hidden_size, state)
    if isinstance(mixer, DeltaRule):
        return ops.delta_rule(x, w, mixer, d.hidden_size, state)
    mask = "memory_mask" if mixer.reads == "memory" else mask_input(mixer.window)
    return ops.attention(x, w, mixer, d.hidden_size, state, mask)
