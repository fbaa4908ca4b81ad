"""AWQ (Lin et al. 2023, arXiv 2306.00978): inputs that matter are scaled up before rounding, and down at their source.

The scaling is folded into the norm, or into the rows of the linear map, that the inputs come from, so that the graph
stays as it is and the float model computes the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgevlm.checkpoint.checkpoint import Weights
from edgevlm.export.quantize.round import quantize
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import Attention, Block
from edgevlm.types import F32

EXPONENTS = np.linspace(0, 0.9, 10)  # 0 is no scaling, which is always tried


@dataclass
class Fold:
    """Factors by tensor name: of a matrix's columns (K,), and of a matrix's or a vector's rows (N,)."""

    columns: dict[str, F32] = field(default_factory=dict)
    rows: dict[str, F32] = field(default_factory=dict)

    def apply(self, name: str, tensor: F32) -> F32:
        """A tensor of the checkpoint as the folded model has it."""
        if name in self.columns:
            tensor = tensor * self.columns[name]
        if name in self.rows:
            tensor = tensor * (self.rows[name] if tensor.ndim == 1 else self.rows[name][:, None])
        return tensor

    def undo(self, name: str, tensor: F32) -> F32:
        """The other way."""
        if name in self.columns:
            tensor = tensor / self.columns[name]
        if name in self.rows:
            tensor = tensor / (self.rows[name] if tensor.ndim == 1 else self.rows[name][:, None])
        return tensor


class FoldedWeights:
    """`Weights` after folding: computes what the original computes."""

    def __init__(self, weights: Weights, fold: Fold) -> None:
        self._weights, self._fold = weights, fold

    def names(self) -> list[str]:
        return self._weights.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights.shape(name)

    def is_linear(self, name: str) -> bool:
        return self._weights.is_linear(name)

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def read(self, name: str) -> F32:
        return self._fold.apply(name, self._weights.read(name))


def source_of(linear: str, spec: ModelSpec) -> tuple[str, int] | None:
    """What the inputs of the map `linear` come from, where a factor can move into it, and heads per shared input.

    A norm, or a linear map whose rows pass on unchanged in proportion: v through attention to o, up through SwiGLU to
    down. GELU is not proportional, nor are maps with bounds and values with norms; values that later layers read have
    more than one o; a norm before attention and MLP together, and a head tied to the embedding, are shared: no source.
    """
    stem, _, part = linear.rpartition(".")
    if stem.startswith("projector"):
        return None
    if ".layers." in linear and not _moves(stem, part, spec):
        return None
    if part in ("q", "k", "v", "o_gate"):
        return f"{stem}.norm1", 1
    if part in ("gate", "up", "fc1"):
        return f"{stem}.norm2", 1
    if part == "o":
        attention = attention_of(stem, spec)
        return f"{stem}.v", attention.heads // attention.kv_heads
    if part == "down":
        return f"{stem}.up", 1
    return ("decoder.norm", 1) if linear == "decoder.head" else None


def _moves(layer: str, part: str, spec: ModelSpec) -> bool:
    block, tower = _block(layer, spec), layer.startswith("vision.")
    mixers = [mixer for mixer in block.mixers if isinstance(mixer, Attention)]
    if block.mlp.clipped or any(mixer.clipped for mixer in mixers):
        return False
    if part in ("q", "k", "v", "o_gate", "gate", "up", "fc1") and block.places == "parallel":
        return False
    if part in ("q", "k", "v", "o_gate") and (block.laurel or any(mixer.gated for mixer in mixers)):
        return False  # the gate, or the map beside the mixer, is by itself, of the same norm
    others = () if tower else (mixer for each in spec.decoder.blocks for mixer in each.mixers)
    shared = any(isinstance(mixer, Attention) and mixer.reads == "earlier" for mixer in others)
    return part != "o" or not (shared or any(mixer.v_norm for mixer in mixers))


def attention_of(layer: str, spec: ModelSpec) -> Attention:
    """The attention of a layer by its name, such as "decoder.layers.3"."""
    (attention,) = (mixer for mixer in _block(layer, spec).mixers if isinstance(mixer, Attention))
    return attention


def _block(layer: str, spec: ModelSpec) -> Block:
    part, *place = layer.split(".")
    return spec.vision.block if part == "vision" else spec.decoder.block(int(place[1]))


def shared(values: F32, heads: int, head_dim: int) -> F32:
    """(K,) largest value among the query heads that read the same key-value head, for every input of `o`."""
    if heads == 1:
        return values
    grouped = values.reshape(-1, heads, head_dim)
    return np.broadcast_to(grouped.max(1, keepdims=True), grouped.shape).reshape(-1)


def choose(
    weights: Sequence[tuple[str, F32]], kind: str, magnitude: F32, hessian: Sequence[F32], at: Sequence[slice]
) -> F32:
    """(K,) the factor of a grid that loses least in the outputs of all `weights` (name, (N, K)), which share an input.

    magnitude (K,): the inputs' root mean squares; `hessian`: blocks of their second moment, at the columns `at`.
    """
    best, least = np.ones_like(magnitude), np.inf
    typical = np.maximum(magnitude, 1e-4 * float(magnitude.max()) + 1e-12)
    for exponent in EXPONENTS:
        factor = (typical**exponent).astype(np.float32)
        factor /= np.sqrt(factor.max() * factor.min())
        loss = 0.0
        for name, weight in weights:
            error = quantize(weight * factor, kind, name).dequantize() / factor - weight
            for part, moment in zip(at, hessian, strict=True):
                loss += float(np.einsum("nk,nk->", error[:, part] @ moment, error[:, part], dtype=np.float64))
        if loss < least:
            best, least = factor, loss
    return best
