"""llama.cpp's text architectures: keys, and what each of them cannot compute (src/models/{llama,qwen2,...}.cpp)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from edgevlm.errors import EdgeVLMError
from edgevlm.export.gguf_.archs import sharing, streams
from edgevlm.export.gguf_.archs.parallel import PARALLEL
from edgevlm.export.gguf_.archs.parts import CHANGED, KINDS, LONG, Refusals, Value, attention, mlp, other_sections, rope
from edgevlm.export.gguf_.archs.sides import BOTH_SIDES, WINDOWED, far, window
from edgevlm.models.spec import Attention, Decoder, DeltaRule, Mixer, Rope, ShortConv
from edgevlm.runtimes.llama import names

_M = TypeVar("_M", bound=Mixer)


@dataclass(frozen=True)
class TextArch:
    name: str  # general.architecture
    fits: Callable[[Decoder, Attention], bool]
    refusals: Refusals = field(default_factory=dict)
    more_keys: dict[str, Callable[[Decoder], Value]] = field(default_factory=dict)
    all_keys: bool = False  # its files hold keys and values of layers that read others', too, which nothing reads
    plain: bool = True  # its layers are all the same, and `_REFUSALS` holds, too

    def keys(self, d: Decoder) -> dict[str, Value]:
        name, norm = self.name, d.block(0).norm
        made: dict[str, Value] = {"general.architecture": name, f"{name}.{_EPSILON[norm.kind]}": norm.eps}
        return made | {f"{self.name}.{key}": value(d) for key, value in {**_KEYS, **self.more_keys}.items()}

    def refusal(self, d: Decoder) -> str | None:
        """Why the architecture cannot compute a decoder; None where it can."""
        refusals = {**(_REFUSALS if self.plain else {}), **self.refusals}
        return next((reason for reason, holds in refusals.items() if holds(d)), None)


def text_arch(d: Decoder) -> TextArch:
    """The architecture for a decoder; EdgeVLMError where llama.cpp has none."""
    fitting = [arch for arch in _ARCHS if arch.fits(d, attention(d))]
    found = next((arch for arch in fitting if arch.refusal(d) is None), None)
    if found is None:
        raise EdgeVLMError(
            f"The model cannot be written as GGUF: its decoder {fitting[0].refusal(d)}; use another target."
        )
    return found


def _of(d: Decoder, kind: type[_M]) -> list[_M]:
    return [mixer for block in d.blocks for mixer in block.mixers if isinstance(mixer, kind)]


def kv_heads(d: Decoder) -> int | list[int]:
    """One number, or one for each layer with 0 for those without attention."""
    mixers = [d.block(layer).mixers[0] for layer in range(d.num_layers)]
    found = [mixer.kv_heads if isinstance(mixer, Attention) else 0 for mixer in mixers]
    return found[0] if len(set(found)) == 1 else found


_KEYS: dict[str, Callable[[Decoder], Value]] = {
    "vocab_size": lambda d: d.vocab_size,
    "context_length": lambda d: d.context_length,
    "embedding_length": lambda d: d.hidden_size,
    "block_count": lambda d: d.num_layers,
    "feed_forward_length": lambda d: mlp(d).size,
    "attention.head_count": lambda d: attention(d).heads,
    "attention.head_count_kv": kv_heads,
    "attention.key_length": lambda d: attention(d).head_dim,
    "attention.value_length": lambda d: attention(d).head_dim,
    "rope.dimension_count": lambda d: rope(d).size,
    "rope.freq_base": lambda d: float(rope(d).theta),
}
_EPSILON = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}


def _other_mixer(d: Decoder) -> bool:
    """Anything but full softmax attention to all earlier positions, with RoPE over whole heads."""
    return any(len(block.mixers) > 1 for block in d.blocks) or _other_attention(d) or _strange(d)


def _strange(d: Decoder, *known: type[Mixer]) -> bool:
    """Whether it has a mixer that is neither attention nor of a known kind."""
    return any(not isinstance(mixer, (Attention, *known)) for block in d.blocks for mixer in block.mixers)


def _other_attention(d: Decoder, gated: str | None = None) -> bool:
    """gated: of attention with such a gate, whose RoPE may turn a part of each head."""
    a = attention(d)
    plain = Attention(a.heads, a.kv_heads, a.head_dim, a.bias, a.out_bias, "main", a.qk_norm, gated=gated)
    whole = gated is not None or ("main" in d.ropes and rope(d).size == a.head_dim)
    turns = set(d.ropes) == {"main"} and whole and (rope(d).factor, rope(d).turning) == (1, None)
    return set(_of(d, Attention)) != {plain} or not turns


def _other_divided(d: Decoder) -> bool:
    """Anything but plain attention with one RoPE, over a part of each head or all of it, whose frequencies alone are
    divided."""
    a = attention(d)
    plain = Rope(rope(d).theta, rope(d).size, divisors=rope(d).divisors, gain=rope(d).gain)
    return d.ropes != {"main": plain} or set(_of(d, Attention)) != {
        Attention(a.heads, a.kv_heads, a.head_dim, rope="main")
    }


def _uneven(d: Decoder, kind: type[Mixer]) -> bool:
    """Whether layers differ in more than that some have attention and the others one mixer of that kind."""
    return (
        len({(block.mlp, block.norm, block.places, block.gated) for block in d.blocks}) > 1
        or any(len(block.mixers) > 1 for block in d.blocks)
        or len(set(_of(d, kind))) > 1
    )


def _rule(d: Decoder) -> DeltaRule:
    return _of(d, DeltaRule)[0]


_MIXERS = "has other mixers than full attention with RoPE"
_REFUSALS: Refusals = {
    "shows positions later ones, where this architecture of llama.cpp is causal": lambda d: d.mask != "causal",
    KINDS: lambda d: len(set(d.layers)) > 1,
    "looks back a window, where this architecture of llama.cpp sees all": lambda d: not d.windows <= {None},
    "turns the two values of a pair by positions of different axes, where llama.cpp turns both by one": lambda d: any(
        a.second_rope for a in _of(d, Attention)
    ),
    "normalizes heads behind RoPE, where this architecture of llama.cpp does so before it": lambda d: any(
        a.norm_after for a in _of(d, Attention)
    ),
    _MIXERS: _other_mixer,
    "has an odd head size": lambda d: attention(d).head_dim % 2 == 1,
    "has other norms than one root mean square before each part and the head": lambda d: (
        {d.norm, d.block(0).norm, attention(d).qk_norm or d.norm} != {d.norm}
        or d.norm is None
        or d.norm.kind != "rms"
        or d.block(0).places != "pre"
        or d.block(0).gated
    ),
    "has another MLP than a gated one with SiLU": lambda d: (mlp(d).act, mlp(d).gated) != ("silu", True),
    **CHANGED,
}
_NO_SCALING: Refusals = {
    "scales RoPE, which this architecture of llama.cpp lacks": lambda d: rope(d).scaling is not None
}
_NO_MORE_BIASES: Refusals = {
    "has biases that this architecture of llama.cpp lacks": lambda d: attention(d).out_bias or mlp(d).bias
}
_BARE = _NO_SCALING | _NO_MORE_BIASES
_SQUARE: Refusals = {
    "has heads that do not add up to its hidden size": lambda d: (
        attention(d).heads * attention(d).head_dim != d.hidden_size
    )
}

_ONE_LEVEL: Refusals = {
    "takes further levels of image features, which this architecture of llama.cpp lacks": lambda d: bool(d.deepstack)
}


_SECTIONS: dict[str, Callable[[Decoder], Value]] = {"rope.dimension_sections": lambda d: [*rope(d).sections, 0]}


_ARCHS = (
    TextArch("phi2", lambda d, a: d.block(0).places == "parallel", PARALLEL | _SQUARE, plain=False),
    TextArch(
        "phi3",
        lambda d, a: d.axes == 1 and bool(rope(d).divisors),
        _BARE | _SQUARE | _ONE_LEVEL | {_MIXERS: _other_divided, LONG: lambda d: False},
        more_keys={
            "rope.scaling.original_context_length": lambda d: d.context_length,
            "rope.scaling.attn_factor": lambda d: float(rope(d).gain),
        },
    ),
    TextArch(names.STREAMS, lambda d, a: d.streams > 1, streams.REFUSALS, streams.KEYS, all_keys=True, plain=False),
    TextArch(names.SHARING, lambda d, a: d.per_layer > 0, sharing.REFUSALS, sharing.KEYS, plain=False),
    TextArch(
        names.SANDWICH,
        fits=lambda d, a: d.block(0).places == "sandwich" and d.windows <= {None},
        refusals=BOTH_SIDES | _ONE_LEVEL,
        more_keys=_SECTIONS,
        plain=False,
    ),
    TextArch(
        names.WINDOWED,
        fits=lambda d, a: d.block(0).places == "sandwich" and not (d.windows <= {None} or _strange(d)),
        refusals=WINDOWED,
        more_keys={
            "attention.sliding_window": window,
            "attention.sliding_window_pattern": far,
            "rope.freq_base_swa": lambda d: float(d.ropes["local"].theta),
            "rope.scaling.type": lambda d: "none" if rope(d).factor == 1 else "linear",
            "rope.scaling.factor": lambda d: float(rope(d).factor),
        },
        plain=False,
    ),
    TextArch(
        "lfm2",
        lambda d, a: bool(_of(d, ShortConv)),
        _BARE
        | _SQUARE
        | _ONE_LEVEL
        | {
            KINDS: lambda d: _uneven(d, ShortConv),
            _MIXERS: lambda d: _other_attention(d) or attention(d).bias or _strange(d, ShortConv),
            "has no norms of queries and keys": lambda d: attention(d).qk_norm is None,
        },
        more_keys={"shortconv.l_cache": lambda d: next(m.kernel for m in _of(d, ShortConv))},
    ),
    TextArch(
        "qwen35",
        lambda d, a: bool(_of(d, DeltaRule)),
        _BARE
        | _ONE_LEVEL
        | {
            KINDS: lambda d: _uneven(d, DeltaRule),
            _MIXERS: lambda d: _other_attention(d, gated="values") or attention(d).bias or _strange(d, DeltaRule),
            "has no norms of queries and keys": lambda d: attention(d).qk_norm is None,
            "puts a picture's tokens on one canvas, where llama.cpp hides from a token what lies further down or "
            "to the right, whichever comes first": lambda d: d.places == "canvas",
            "has other RoPE sections than three that take turns": lambda d: (
                not rope(d).interleaved or other_sections(d)
            ),
            "has linear attention with keys and values of different sizes": lambda d: (
                _rule(d).key_dim != _rule(d).value_dim
            ),
            "has linear attention whose values, which llama.cpp sorts by head, are no multiples of 32": lambda d: (
                _rule(d).key_heads != _rule(d).value_heads and _rule(d).value_dim % 32 > 0
            ),
            "has norms with another epsilon than 1e-6, which llama.cpp also takes for keys": lambda d: (
                {d.block(0).norm.eps, _rule(d).norm.eps} != {1e-6} or _rule(d).norm.kind != "rms"
            ),
        },
        more_keys=_SECTIONS
        | {
            "n_deepstack_layers": lambda d: len(d.deepstack),
            "attention.head_count_kv": lambda d: attention(d).kv_heads,
            "attention.recurrent_layers": lambda d: [
                isinstance(d.block(layer).mixers[0], DeltaRule) for layer in range(d.num_layers)
            ],
            "ssm.conv_kernel": lambda d: _rule(d).kernel,
            "ssm.state_size": lambda d: _rule(d).key_dim,
            "ssm.group_count": lambda d: _rule(d).key_heads,
            "ssm.time_step_rank": lambda d: _rule(d).value_heads,
            "ssm.inner_size": lambda d: _rule(d).value_heads * _rule(d).value_dim,
        },
    ),
    TextArch(
        "qwen3vl",
        fits=lambda d, a: d.axes > 1 and (rope(d).interleaved or bool(d.deepstack)),
        refusals=_BARE
        | {
            "has biases on q, k and v, which this architecture of llama.cpp lacks": lambda d: attention(d).bias,
            "does not normalize its heads": lambda d: attention(d).qk_norm is None,
            "has other RoPE sections than three that take turns over the whole head": lambda d: (
                not rope(d).interleaved or other_sections(d)
            ),
            "takes image features behind other layers than its first, or behind its last": lambda d: (
                d.deepstack != tuple(range(min(len(d.deepstack), d.num_layers - 1)))
            ),
        },
        more_keys=_SECTIONS | {"n_deepstack_layers": lambda d: len(d.deepstack)},
    ),
    TextArch(
        "qwen2vl",
        fits=lambda d, a: d.axes > 1 and not (rope(d).interleaved or d.deepstack),
        refusals=_BARE
        | _SQUARE
        | {
            "normalizes its heads": lambda d: attention(d).qk_norm is not None,
            "has other RoPE sections than three runs over the whole head": other_sections,
        },
        more_keys=_SECTIONS,
    ),
    TextArch(
        "paddleocr",
        fits=lambda d, a: d.axes > 1 and not (rope(d).interleaved or d.deepstack) and not a.bias,
        refusals=_BARE
        | {
            "normalizes its heads": lambda d: attention(d).qk_norm is not None,
            "has other RoPE sections than three runs over the whole head": other_sections,
        },
        more_keys=_SECTIONS,
    ),
    TextArch(
        names.LEVELS,
        lambda d, a: d.axes == 1 and a.qk_norm is None and not a.bias and bool(d.deepstack),
        _NO_MORE_BIASES | {"takes image features behind its last layer": lambda d: d.num_layers - 1 in d.deepstack},
        more_keys={"logit_scale": lambda d: 1.0, "deepstack_mapping": names.level_before_layers},
    ),
    TextArch("qwen3", lambda d, a: d.axes == 1 and a.qk_norm is not None, _BARE | _ONE_LEVEL),
    TextArch("qwen2", lambda d, a: d.axes == 1 and a.qk_norm is None and a.bias, _BARE | _SQUARE | _ONE_LEVEL),
    TextArch("llama", lambda d, a: d.axes == 1 and a.qk_norm is None, _ONE_LEVEL),
)
