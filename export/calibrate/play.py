"""A batch of prompts through the eager backend, layer by layer, so that each weight is read once for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.export.calibrate.batch import Batch
from edgevlm.inputs.layout import merge, split_features, visible
from edgevlm.models.decoder import decoder, embed_tokens
from edgevlm.models.eager import EagerOps, attend
from edgevlm.models.model import ModelSpec, image_features
from edgevlm.models.ops import Weights
from edgevlm.models.spec import Attention, DeltaRule, head_name
from edgevlm.models.states import States
from edgevlm.types import F32

_ROWS = 1024


class SequenceOps(EagerOps):
    """Several sequences behind each other: what goes from position to position does not go from one to the next."""

    def causal_conv(self, x: F32, name: str, width: int, kernel: int, state: str) -> F32:
        one = super().causal_conv
        return np.concatenate(self._each(lambda own: one(x[own], name, width, kernel, state)))

    def correct(self, x: F32, decay: F32, rate: F32, r: DeltaRule, state: str) -> F32:
        one = super().correct
        return np.concatenate(self._each(lambda own: one(x[own], decay[own], rate[own], r, state)), axis=1)

    def _each(self, call: Callable[[Any], F32]) -> list[F32]:
        """A call for each sequence's rows, with its own states."""
        raise NotImplementedError


class PackedOps(SequenceOps):
    """`EagerOps` over the rows of all groups; attention stays inside a sequence."""

    def __init__(self, weights: Weights, spec: ModelSpec, batch: Batch, *, head: bool = True) -> None:
        """head: compute logits; otherwise the last operation gives the states that the head would take."""
        super().__init__(weights, inputs={**batch.feeds, **batch.rows(spec.decoder)})
        self.spec, self.batch, self.head = spec, batch, head
        self._grown: dict[str, F32] = {}

    def append(self, state: str, x: F32) -> F32:
        """Kept for later layers alone: all rows of a sequence are here."""
        self._grown[state] = x
        return x

    def grown(self, state: str) -> F32:
        return self._grown[state]

    def _each(self, call: Callable[[Any], F32]) -> list[F32]:
        """A call for each sequence's rows, which goes on from what its prefix left."""
        found, left = [], States()
        for own, seen, _ in self.batch.sequences():
            first = len(own) == len(seen)
            self.states = States() if first else States(replaced=dict(left.replaced))
            found.append(call(own))
            left = self.states if first else left
        return found

    def attend(self, q: F32, k: F32, v: F32, a: Attention, mask: str | None) -> F32:
        if q.ndim == 4:
            return super().attend(q, k, v, a, mask)
        out = np.empty_like(q)
        for own, seen, layout in self.batch.sequences():
            allowed = visible(layout, self.spec.decoder.mask, len(seen) - len(own), len(own), a.window)
            out[:, own] = attend(q[:, own], k[:, seen], v[:, seen], a, allowed)
        return out

    def act(self, x: F32, kind: str) -> F32:
        """In pieces, and in place: a map's output is used once, and here it is the largest array."""
        flat = x.reshape(-1, x.shape[-1])
        for i in range(0, len(flat), _ROWS):
            flat[i : i + _ROWS] = super().act(flat[i : i + _ROWS], kind)
        return flat.reshape(x.shape)

    def linear(self, x: F32, *maps: tuple[str, int], bias: bool = False) -> list[F32]:
        if not self.head and maps[0][0] == head_name(self.spec.decoder):
            return [x]
        return super().linear(x, *maps, bias=bias)

    def last(self, x: F32) -> F32:
        return x[self.batch.predicting]


def batch_features(ops: PackedOps, spec: ModelSpec, batch: Batch) -> F32:
    """(N, D) features of all pictures, through any backend that holds the values of `PackedOps`."""
    features: F32 = image_features(ops, spec, dict(batch.feeds))
    return features.reshape(-1, features.shape[-1])


def batch_embeddings(ops: PackedOps, spec: ModelSpec, batch: Batch, features: F32) -> F32:
    """(S, D): features in the places of image tokens."""
    layout = batch.layout
    return merge(embed_tokens(ops, batch.ids, spec.decoder), layout, split_features(features, layout))


def answer_states(spec: ModelSpec, weights: Weights, batch: Batch, features: F32) -> F32:
    """(A, D): what the head takes at the rows that predict answers."""
    ops, bare = PackedOps(weights, spec, batch, head=False), replace(spec.decoder, logit_cap=None)
    states: F32 = decoder(ops, batch_embeddings(ops, spec, batch, features), bare)
    return states


def encode_batch(spec: ModelSpec, weights: Weights, batch: Batch) -> F32:
    """(N, D) float32 features of all pictures, each weight read once."""
    return batch_features(PackedOps(weights, spec, batch), spec, batch)


def divergence(
    spec: ModelSpec, first: Weights, second: Weights, states: tuple[F32, F32]
) -> tuple[F32, npt.NDArray[np.bool_]]:
    """KL(first || second) in nats and top-1 agreement, (A,) each, of next-token distributions from head states (A, D).

    The heads are read once and played in pieces, for the logits of a large vocabulary outweigh everything else.
    """
    head = f"{head_name(spec.decoder)}.weight"
    one, two = first.read(head), second.read(head)
    kl, same = [], []
    for i in range(0, len(states[0]), 128):
        p, q = states[0][i : i + 128] @ one.T, states[1][i : i + 128] @ two.T
        same.append(p.argmax(-1) == q.argmax(-1))
        if cap := spec.decoder.logit_cap:
            p, q = (cap * np.tanh(logits / cap) for logits in (p, q))
        p, q = _log_softmax(p), _log_softmax(q)
        kl.append((np.exp(p) * (p - q)).sum(-1, dtype=np.float64).astype(np.float32))
    return np.concatenate(kl), np.concatenate(same)


def _log_softmax(logits: F32) -> F32:
    shifted = logits - logits.max(-1, keepdims=True)
    normed: F32 = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normed
