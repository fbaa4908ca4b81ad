"""What a language model is: small frozen parts that a family file puts together. No part knows a family.

Llama, Qwen2, Qwen3, Gemma, LFM2, Llama 3.2 Vision, OPT and BART are values of these dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

CACHES = ("float32", "int8")
ACTS = ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu")


@dataclass(frozen=True)
class Norm:
    """A norm over the last axis: root mean square (arXiv 1910.07467) or layer norm (arXiv 1607.06450)."""

    kind: str = "rms"  # "rms" | "layer"; a layer norm has a bias
    eps: float = 1e-6
    weight: bool = True  # False: the bare norm, of a root mean square alone


BARE = Norm("rms", 1e-10, weight=False)  # of what is scaled by another size afterwards


@dataclass(frozen=True)
class RopeScaling:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended.

    What is short: a wavelength that turns `high_freq_factor` times within the original context; long: that turns
    `low_freq_factor` times. Between them, the share that is kept grows with the turns (Llama 3.1) or, in whole
    frequencies, with their logarithm (YaRN, arXiv 2309.00071).
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int  # positions that the model was first trained on
    kind: str = "llama3"  # "llama3" | "yarn"


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (arXiv 2104.09864) of split halves, over one or several position axes."""

    theta: float
    size: int  # values of a head that are rotated
    scaling: RopeScaling | None = None
    sections: tuple[int, ...] = ()  # frequencies per position axis, of size / 2; () is one axis (M-RoPE has three)
    interleaved: bool = False  # the axes take turns (Qwen3-VL); otherwise one run of frequencies after the other
    factor: float = 1.0  # every frequency is divided by it: linear interpolation (arXiv 2306.15595)
    divisors: tuple[float, ...] = ()  # of size / 2 frequencies, each is divided by its own (arXiv 2402.13753)
    gain: float = 1.0  # cosines and sines are multiplied by it
    turning: int | None = None  # of size / 2 frequencies, the first that are more than 0; None: all (proportional RoPE)

    @property
    def axes(self) -> int:
        return len(self.sections) or 1


@dataclass(frozen=True)
class Attention:
    """Softmax attention; query heads share key heads in groups (arXiv 2305.13245)."""

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = False  # on q, k and v
    out_bias: bool = False
    rope: str | None = None  # a key of Decoder.ropes, or of the tower's inputs; None: no rotation
    qk_norm: Norm | None = None  # per head, before RoPE or behind it
    scale: float | None = None  # None: head_dim ** -0.5
    softcap: float | None = None
    window: int | None = None  # positions that a query looks back, its own included; None: all
    gated: str | None = None  # what it gives is multiplied, before `o`, by the sigmoid of one more map of its input,
    # which has an output for each of its "values" or for each of its "heads"
    # "self" | "memory": keys and values of the encoder or the picture, made once per prompt | "earlier": those of the
    # last layer before with the same window that makes its own
    reads: str = "self"
    v_norm: Norm | None = None  # of values, per head
    clipped: bool = False  # what goes into each map and comes out of it is kept within bounds of its own
    second_rope: str | None = None  # the second half of each head turns by these rows, where not by the first's
    norm_after: bool = False  # `qk_norm` stands behind RoPE
    cache: str = "float32"  # how keys and values are kept: "float32" | "int8", in steps of their own for each channel
    kind: str = "attention"


@dataclass(frozen=True)
class Conv:
    """A convolution over a grid whose sides the stride divides, with zeros around it."""

    width: int  # channels that come out
    kernel: int  # positions per side
    stride: int = 1
    groups: int = 1
    bias: bool = True
    # True: as few zeros as give a result for each step, of an odd number more behind (TensorFlow's "SAME"); otherwise
    # half a kernel on each side.
    same: bool = False

    @property
    def zeros(self) -> tuple[int, int]:
        """Rows and columns of them before the grid, and behind it."""
        half, missing = self.kernel // 2, max(0, self.kernel - self.stride)
        return (missing // 2, missing - missing // 2) if self.same else (half, half)


@dataclass(frozen=True)
class ShortConv:
    """LFM2's gated causal convolution over positions; its state is the last kernel - 1 inputs."""

    kernel: int
    kind: str = "short_conv"


@dataclass(frozen=True)
class DeltaRule:
    """Linear attention (arXiv 2412.06464) behind a short convolution: per value head one matrix from keys to values.

    The matrix decays, and what it says of the next key is corrected towards that key's value.
    """

    key_heads: int  # of queries, too; each serves value_heads / key_heads value heads
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    norm: Norm  # of each head of what it gives
    kind: str = "delta_rule"

    @property
    def channels(self) -> int:
        """Values of a position that the convolution takes: queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


Mixer = Attention | ShortConv | DeltaRule


@dataclass(frozen=True)
class Mlp:
    size: int
    act: str = "silu"  # of ACTS
    gated: bool = True  # act(gate) * up (arXiv 2002.05202); otherwise two maps with the activation between
    bias: bool = False
    clipped: bool = False  # as in Attention
    # Of a gate: how many standard deviations above the mean of its values the one lies from which they are counted;
    # None: all of them are, from 0.
    cutoff: float | None = None


@dataclass(frozen=True)
class Block:
    """One layer: mixers, then an MLP, each beside a residual connection."""

    mixers: tuple[Mixer, ...]  # one; two in an encoder-decoder: attention to itself, then to the memory
    mlp: Mlp
    norm: Norm = Norm()
    # Where norms stand: "pre" | "sandwich" (also behind each part, Gemma 2) | "post" (BART) | "parallel" (one, whose
    # result mixer and MLP both take, Phi).
    places: str = "pre"
    gated: bool = False  # tanh(gate) before each residual sum (Llama 3.2 Vision)
    scaled: bool = False  # what the layer gives is multiplied by a number of its own
    laurel: int = 0  # values between two maps beside the first mixer, whose sum with their input joins the residual's
    # (LAuReL, arXiv 2411.07501); 0: none


@dataclass(frozen=True)
class Decoder:
    """Embeddings to logits: blocks over a growing context."""

    vocab_size: int
    hidden_size: int
    context_length: int  # positions, prompt and answer together
    blocks: tuple[Block, ...]  # the different ones
    layers: tuple[int, ...]  # which of `blocks` each layer is
    norm: Norm | None = Norm()  # before the head
    ropes: dict[str, Rope] = field(default_factory=dict)
    # "causal" | "image" (image tokens see their whole picture) | "prompt" (a prompt sees itself) | "prefix" (what comes
    # up to the end of a picture sees itself).
    mask: str = "causal"
    learned_positions: int = 0  # rows of a table of positions (OPT, BART); 0: none
    embed_norm: Norm | None = None  # of embeddings with their positions (BART)
    embed_scale: float = 1.0
    logit_cap: float | None = None
    # On several axes pictures have a "grid" for each view, a "canvas", a "line" as text, or a "number" beside rows and
    # columns.
    places: str = "grid"
    deepstack: tuple[int, ...] = ()  # behind which layers one more level of image features each is added (Qwen3-VL)
    per_layer: int = 0  # values that each layer takes of a token's row of a second table (per-layer embeddings)
    per_layer_scale: float = 1.0  # of these rows
    streams: int = 1  # of states, of which each layer computes the first (models/streams.py)
    tie_embeddings: bool = False
    head_bias: bool = False

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def embed_width(self) -> int:
        """Values of a position that comes in: its embedding, and behind it what each level of `deepstack` adds, or
        what `per_layer` gives each layer."""
        return self.feature_width + self.per_layer_width

    @property
    def feature_width(self) -> int:
        """Values of an image token's features, which come in the place of as many of its embedding's."""
        return self.hidden_size * (1 + len(self.deepstack))

    @property
    def per_layer_width(self) -> int:
        """Values of a row of the second table."""
        return self.per_layer * self.num_layers

    def block(self, layer: int) -> Block:
        return self.blocks[self.layers[layer]]

    @property
    def axes(self) -> int:
        """Position axes: 1, or 3 (time, row, column) under M-RoPE, or (index,) column, row, number."""
        return max((rope.axes for rope in self.ropes.values()), default=1)

    @cached_property
    def windows(self) -> frozenset[int | None]:
        """The different windows of attention to the decoder's own positions; None sees all."""
        mixers = (mixer for block in self.blocks for mixer in block.mixers)
        return frozenset(m.window for m in mixers if isinstance(m, Attention) and m.reads != "memory")

    @cached_property  # asked for at every token
    def is_plain(self) -> bool:
        """One position axis under the causal mask: a position is its index, so graphs need no more than a length."""
        return self.axes == 1 and self.mask == "causal" and self.windows <= {None}

    @cached_property
    def cache(self) -> str:
        """How keys and values are kept, by all layers alike."""
        mixers = (mixer for block in self.blocks for mixer in block.mixers)
        kept = {mixer.cache for mixer in mixers if isinstance(mixer, Attention) and mixer.reads != "memory"}
        return "int8" if "int8" in kept else "float32"

    @cached_property
    def replaces(self) -> bool:
        """Whether a call overwrites a state: it then cannot forget its last positions, only all of them."""
        return any(state.kind == "replace" for state in states(self))


@dataclass(frozen=True)
class State:
    """One tensor that a decoder carries from call to call; one axis is None where it grows."""

    name: str
    shape: tuple[int | None, ...]
    kind: str  # "append": grows along its free axis | "replace": written whole | "memory": set once per prompt
    dtype: str = "float32"


def states(decoder: Decoder) -> list[State]:
    """What a runtime holds between calls, in the order of layers. Runtimes allocate by it, and know no architecture."""
    found = []
    for layer in range(decoder.num_layers):
        for m, mixer in enumerate(decoder.block(layer).mixers):
            name = state_name(layer, m)
            if isinstance(mixer, ShortConv):
                found.append(State(f"{name}.conv", (mixer.kernel - 1, decoder.hidden_size), "replace"))
            elif isinstance(mixer, DeltaRule):
                found.append(State(f"{name}.conv", (mixer.kernel - 1, mixer.channels), "replace"))
                matrices = (mixer.value_heads, mixer.key_dim, mixer.value_dim)
                found.append(State(f"{name}.delta", matrices, "replace"))
            elif mixer.reads != "earlier":
                kind = "append" if mixer.reads == "self" else "memory"
                shape = (mixer.kv_heads, None, mixer.head_dim)
                found += [State(f"{name}.{side}", shape, kind, mixer.cache) for side in ("key", "value")]
    return found


def with_cache(decoder: Decoder, dtype: str) -> Decoder:
    """The same decoder, whose keys and values are kept as "float32" or "int8"."""

    def kept(mixer: Mixer) -> Mixer:
        return replace(mixer, cache=dtype) if isinstance(mixer, Attention) and mixer.reads != "memory" else mixer

    blocks = (replace(block, mixers=tuple(map(kept, block.mixers))) for block in decoder.blocks)
    return replace(decoder, blocks=tuple(blocks))


def keeps(decoder: Decoder, layer: int, m: int) -> int:
    """The layer whose keys and values a layer's mixer reads: its own, or an earlier one's; -1 where there is none."""
    mixer = decoder.block(layer).mixers[m]
    if not isinstance(mixer, Attention) or mixer.reads != "earlier":
        return layer
    for before in range(layer - 1, -1, -1):
        other = decoder.block(before).mixers[m] if m < len(decoder.block(before).mixers) else None
        if isinstance(other, Attention) and other.reads == "self" and other.window == mixer.window:
            return before
    return -1


def state_name(layer: int, mixer: int) -> str:
    return f"{layer}" if mixer == 0 else f"{layer}.mixer{mixer}"


def head_name(decoder: Decoder) -> str:
    return "decoder.embed" if decoder.tie_embeddings else "decoder.head"
