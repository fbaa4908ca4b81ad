"""The architecture played in float32 numpy on the weights that a bundle ships: slow, plain, the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.layout import Layout, decoder_inputs
from edgevlm.models.decoder import decoder, embed_tokens
from edgevlm.models.eager import EagerOps
from edgevlm.models.model import ModelSpec, image_features
from edgevlm.models.ops import Weights
from edgevlm.models.states import States
from edgevlm.runtimes.base import F32, I64, no_features

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
        self._states, self._layout, self._position = States(), Layout(0), 0

    def encode(self, pixels: F32) -> F32:
        if not len(pixels):
            return no_features(self._spec, pixels)
        # View by view, so that the largest activation is one view's.
        return np.concatenate([encode_view(self._spec, self._weights, view) for view in pixels])

    def embed(self, ids: I64) -> F32:
        rows: F32 = embed_tokens(EagerOps(self._weights), ids, self._spec.decoder)
        return rows

    def prefill(self, embeds: F32, layout: Layout | None = None) -> F32:
        d, total = self._spec.decoder, self._position + len(embeds)
        if total > d.context_length:
            raise context_error(total, d.context_length)
        # An interrupt in an earlier call may have left layers of different lengths.
        self._states.cut(self._position)
        if layout is not None:
            self._layout = layout
        inputs = decoder_inputs(d, self._layout, self._position, len(embeds))
        logits: F32 = decoder(EagerOps(self._weights, self._states, inputs), embeds, d)[-1]
        self._position = total
        return logits

    def step(self, token: int) -> F32:
        return self.prefill(self.embed(np.array([token], np.int64)))

    @property
    def position(self) -> int:
        return self._position

    def truncate(self, length: int) -> None:
        self._position = min(self._position, length)
        self._states.cut(self._position)

    def close(self) -> None:
        self.truncate(0)
        if isinstance(self._weights, CachedWeights):
            self._weights.clear()


def encode_view(spec: ModelSpec, weights: Weights, pixels: F32) -> F32:
    """Normalized pixels (3, H, W) to features (1, tokens, D)."""
    feeds = spec.vision.feeds(pixels)
    features: F32 = image_features(EagerOps(weights, inputs=feeds), spec, feeds)
    return features


def context_error(total: int, limit: int) -> EdgeVLMError:
    return EdgeVLMError(
        f"The conversation would take {total} positions and the model's context holds {limit}: start a new "
        "one, or ask for less."
    )
