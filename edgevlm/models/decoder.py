"""Every decoder: a walk over its blocks. Llama, Qwen, Gemma, LFM2, OPT and BART differ in their spec."""

from __future__ import annotations

from edgevlm.models.blocks import mask_input, mixer_name, residual
from edgevlm.models.ops import Ops, X
from edgevlm.models.spec import Attention, Block, Decoder, DeltaRule, Mixer, ShortConv, head_name, keeps, state_name
from edgevlm.models.streams import behind, joined, spread


def embed_tokens(ops: Ops, ids: X, d: Decoder) -> X:
    """Ids (S,) to embeddings (S, D), with zeros behind them where image tokens have more levels of features, and with
    what each layer takes of the token where there is a second table."""
    x = ops.embed(ids, "decoder.embed", d.vocab_size, d.hidden_size)
    x = ops.mul(x, d.embed_scale) if d.embed_scale != 1.0 else x
    if d.per_layer:
        rows = ops.embed(ids, "decoder.per_layer_embed", d.vocab_size, d.per_layer_width)
        return ops.beside([x, ops.mul(rows, d.per_layer_scale)])
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
    return head(ops, hidden_states(ops, x, d), d)


def head(ops: Ops, x: X, d: Decoder) -> X:
    """What the last layer gives (S, D) to logits of the last position."""
    x = ops.last(ops.norm(x, "decoder.norm", d.norm) if d.norm else x)
    logits = ops.linear(x, (head_name(d), d.vocab_size), bias=d.head_bias)[0]
    return ops.mul(ops.act(ops.mul(logits, 1 / d.logit_cap), "tanh"), d.logit_cap) if d.logit_cap else logits


def hidden_states(ops: Ops, x: X, d: Decoder) -> X:
    """Embeddings as `decoder` takes them to what the last layer gives (S, D), before the norm of the head."""
    widths = [d.hidden_size] * (1 + len(d.deepstack)) + [d.per_layer_width] * bool(d.per_layer)
    x, *levels = ops.split(x, *widths) if len(widths) > 1 else (x,)
    given = _per_layer(ops, x, levels.pop(), d) if d.per_layer else [None] * d.num_layers
    if d.learned_positions:
        table = ops.embed(ops.input("positions"), "decoder.positions", d.learned_positions, d.hidden_size)
        x = ops.add(x, table)
    x = ops.norm(x, "decoder.embed_norm", d.embed_norm) if d.embed_norm else x
    streams = spread(ops, x, d) if d.streams > 1 else []
    for layer in range(d.num_layers):
        if streams:
            streams = _streamed(ops, streams, layer, d, given[layer])
            continue
        x = _layer(ops, x, layer, d, given[layer])
        if layer in d.deepstack:
            x = ops.add(x, levels[d.deepstack.index(layer)])  # zeros where a position is no image token
    return joined(ops, streams, d) if streams else x


def _per_layer(ops: Ops, x: X, rows: X, d: Decoder) -> list[X]:
    """What each layer is given of every position: its token's row (S, layers * P) and a map of its embedding."""
    assert d.norm is not None
    made = ops.linear(x, ("decoder.per_layer_map", d.per_layer_width))[0]
    made = ops.mul(made, d.hidden_size**-0.5)
    made = ops.norm_parts(made, "decoder.per_layer_norm", d.norm, d.num_layers, d.per_layer)
    both = ops.mul(ops.add(made, rows), 0.5**0.5)
    return ops.split(both, *[d.per_layer] * d.num_layers) if d.num_layers > 1 else [both]


def _streamed(ops: Ops, streams: list[X], layer: int, d: Decoder, given: X | None) -> list[X]:
    """A layer computes the first stream; what its token's row adds goes to the others."""
    block, w = d.block(layer), f"decoder.layers.{layer}"
    first, *others = behind(ops, streams, w, d, block.norm, lambda x: _block(ops, x, layer, d))
    if given is not None:
        x = ops.mul(first, ops.vector(f"{w}.first_scale", d.hidden_size))
        added = _of_token(ops, x, given, w, block, d)
        others = [ops.add(added, other) for other in others]
    return [first, *others]


def _layer(ops: Ops, x: X, layer: int, d: Decoder, given: X | None) -> X:
    block, w = d.block(layer), f"decoder.layers.{layer}"
    x = _block(ops, x, layer, d)
    x = ops.add(x, _of_token(ops, x, given, w, block, d)) if given is not None else x
    return ops.mul(x, ops.vector(f"{w}.scale", 1)) if block.scaled else x


def _block(ops: Ops, x: X, layer: int, d: Decoder) -> X:
    """x behind a layer's mixers and its MLP."""
    block, w = d.block(layer), f"decoder.layers.{layer}"
    if block.places == "parallel":
        h = ops.norm(x, f"{w}.norm1", block.norm)
        x = ops.add(x, _mix(ops, h, layer, 0, block.mixers[0], d))
        return ops.add(x, ops.mlp(h, w, block.mlp, d.hidden_size))
    for m, mixer in enumerate(() if block.laurel else block.mixers):
        x = residual(ops, x, block, mixer_name(w, m), 1, lambda h, m=m, mixer=mixer: _mix(ops, h, layer, m, mixer, d))  # type: ignore[misc]
    x = _mixed_beside_map(ops, x, layer, d) if block.laurel else x
    return residual(ops, x, block, w, 2, lambda h: ops.mlp(h, w, block.mlp, d.hidden_size))


def _mixed_beside_map(ops: Ops, x: X, layer: int, d: Decoder) -> X:
    """x behind a layer's mixer and the map beside it, which takes what the mixer takes."""
    block, w = d.block(layer), f"decoder.layers.{layer}"
    h = ops.norm(x, f"{w}.norm1", block.norm)
    mixed = ops.add(x, ops.norm(_mix(ops, h, layer, 0, block.mixers[0], d), f"{w}.norm1_after", block.norm))
    inner = ops.linear(h, (f"{w}.laurel_in", block.laurel))[0]
    made = ops.linear(inner, (f"{w}.laurel_out", d.hidden_size))[0]
    beside = ops.add(h, ops.norm(made, f"{w}.laurel_norm", block.norm))
    return ops.mul(ops.add(mixed, beside), 0.5**0.5)


def _of_token(ops: Ops, x: X, given: X, w: str, block: Block, d: Decoder) -> X:
    """What a layer makes of its part of a token's row, as far as x lets it."""
    gate = ops.act(ops.linear(x, (f"{w}.per_layer_gate", d.per_layer))[0], block.mlp.act)
    added = ops.linear(ops.mul(gate, given), (f"{w}.per_layer_up", d.hidden_size))[0]
    return ops.norm(added, f"{w}.per_layer_norm", block.norm)


def _mix(ops: Ops, x: X, layer: int, m: int, mixer: Mixer, d: Decoder) -> X:
    w, state = mixer_name(f"decoder.layers.{layer}", m), state_name(keeps(d, layer, m), m)
    if isinstance(mixer, ShortConv):
        return ops.short_conv(x, w, mixer, d.hidden_size, state)
    if isinstance(mixer, DeltaRule):
        return ops.delta_rule(x, w, mixer, d.hidden_size, state)
    mask = "memory_mask" if mixer.reads == "memory" else mask_input(mixer.window)
    return ops.attention(x, w, mixer, d.hidden_size, state, mask)
