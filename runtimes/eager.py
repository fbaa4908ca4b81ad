"""The architecture played in float32 numpy on the weights that a bundle ships: slow, plain, the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgevlm.errors import EdgeVLMError
from edgevlm.models.eager import EagerOps, KVCache
from edgevlm.models.llama import decoder, embed_tokens
from edgevlm.models.ops import Weights
from edgevlm.models.projector import projector
from edgevlm.models.siglip import vision_tower
from edgevlm.models.spec import ModelSpec
from edgevlm.types import F32, I64

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle


def open_eager(bundle: Bundle, device: str = "cpu") -> EagerRuntime:
    """The runtime on the weights of the bundle's own files, dequantized as they are read."""
    if device != "cpu":
        raise EdgeVLMError(f"Runtime 'eager' has no {device.upper()}: it is plain numpy, use --device cpu.")
    from edgevlm.bundle.weights import ShippedWeights

    return EagerRuntime(bundle.manifest.spec, ShippedWeights(bundle))


class CachedWeights:
    """Keeps the decoder's tensors, which every token reads once; the vision tower's pass through unkept.

    Costs 4 bytes per decoder weight, and saves reading and dequantizing all of them for each token.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._kept: dict[str, F32] = {}

    def read(self, name: str) -> F32:
        if not name.startswith("decoder."):
            return self._weights.read(name)
        if name not in self._kept:
            self._kept[name] = self._weights.read(name)
        return self._kept[name]

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def clear(self) -> None:
        self._kept.clear()


class EagerRuntime:
    """`Runtime` over `edgevlm.models` and any `Weights`: a bundle's, or a checkpoint's before any export."""

    name = "eager"
    device = "CPU (numpy)"

    def __init__(self, spec: ModelSpec, weights: Weights, *, keep_decoder: bool = True) -> None:
        """keep_decoder: hold the decoder in memory as float32 after its first use (see `CachedWeights`)."""
        self._spec = spec
        self._weights = CachedWeights(weights) if keep_decoder else weights
        self._cache = KVCache(spec.decoder)
        self._position = 0

    def encode(self, pixels: F32) -> F32:
        ops = EagerOps(self._weights)
        spec = self._spec
        features = np.empty((len(pixels), spec.image_tokens, spec.decoder.hidden_size), np.float32)
        for i in range(len(pixels)):  # tile by tile, so that the largest activation is one tile's
            states = vision_tower(ops, pixels[i : i + 1], spec.vision)
            features[i] = projector(ops, states, spec.projector)[0]
        return features

    def embed(self, ids: I64) -> F32:
        rows: F32 = embed_tokens(EagerOps(self._weights), ids)
        return rows

    def prefill(self, embeds: F32) -> F32:
        total = self._position + len(embeds)
        if total > self._spec.decoder.context_length:
            raise context_error(total, self._spec.decoder.context_length)
        # An interrupt in an earlier call may have left layers of different lengths.
        self._cache.truncate(self._position)
        logits: F32 = decoder(EagerOps(self._weights, self._cache), embeds, self._spec.decoder)[-1]
        self._position = total
        return logits

    def step(self, token: int) -> F32:
        return self.prefill(self.embed(np.array([token], np.int64)))

    @property
    def position(self) -> int:
        return self._position

    def truncate(self, length: int) -> None:
        self._position = min(self._position, length)
        self._cache.truncate(self._position)

    def close(self) -> None:
        self.truncate(0)
        if isinstance(self._weights, CachedWeights):
            self._weights.clear()


def context_error(total: int, limit: int) -> EdgeVLMError:
    return EdgeVLMError(
        f"The conversation would take {total} positions and the model's context holds {limit}: start a new "
        "one, or ask for less."
    )
