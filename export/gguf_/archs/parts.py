"""What the tables of llama.cpp's text architectures ask of a decoder."""

from __future__ import annotations

from collections.abc import Callable

from edgevlm.models.spec import Attention, Decoder, Mlp, Rope

Value = bool | int | float | str | list[int] | list[float] | list[bool]
Refusals = dict[str, Callable[[Decoder], bool]]  # "it ..." -> whether that is so
KINDS = "has layers of different kinds"


def attention(d: Decoder) -> Attention:
    """The first attention, which stands for all once `_REFUSALS` are past."""
    mixers = (mixer for layer in range(d.num_layers) for mixer in d.block(layer).mixers)
    return next((mixer for mixer in mixers if isinstance(mixer, Attention)), Attention(1, 1, 2))


def mlp(d: Decoder) -> Mlp:
    return d.block(0).mlp


def rope(d: Decoder) -> Rope:
    return d.ropes["main"]


def other_sections(d: Decoder) -> bool:
    return len(rope(d).sections) != 3 or 2 * sum(rope(d).sections) != rope(d).size


LONG = "divides each frequency of RoPE by a number of its own, which this architecture of llama.cpp lacks"
CHANGED: Refusals = {
    LONG: lambda d: any((r.divisors, r.gain) != ((), 1) for r in d.ropes.values()),
    "changes embeddings or logits": lambda d: (
        bool(d.learned_positions or d.embed_norm or d.logit_cap or d.head_bias) or d.embed_scale != 1.0
    ),
}
