"""The architecture played in float32 numpy on the weights that a bundle ships: slow, plain, the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.layout import Layout, decoder_inputs
from edgevlm.inputs.preprocess import normalize
from edgevlm.inputs.spec import ImageSpec
from edgevlm.models.decoder import embed_tokens, head, hidden_states
from edgevlm.models.eager import EagerOps
from edgevlm.models.model import ModelSpec, image_features
from edgevlm.models.ops import Weights
from edgevlm.models.spec import Decoder
from edgevlm.models.states import States
from edgevlm.runtimes.base import EngineOptions, Runtime, context_error, never, nothing, rewound
from edgevlm.types import F32, I64, U8

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

NAME, DEVICE = "eager", "CPU (numpy)"


def open_runtime(bundle: Bundle, options: EngineOptions, beside: Callable[[], object] = nothing) -> Runtime:
    """On the weights of the bundle's own files, dequantized as they are read."""
    beside()
    return Runtime(open_encoder(bundle, options), open_decoder(bundle, options))


def open_encoder(bundle: Bundle, options: EngineOptions) -> EagerEncoder:
    return EagerEncoder(bundle.manifest.spec, _weights(bundle, options), bundle.image_spec)


def open_decoder(bundle: Bundle, options: EngineOptions) -> EagerDecoder:
    return EagerDecoder(bundle.manifest.spec.decoder, _weights(bundle, options))


def eager_runtime(bundle: Bundle, weights: Weights) -> Runtime:
    """The bundle's model on other weights than its files': the original's, for one."""
    spec = bundle.manifest.spec
    return Runtime(EagerEncoder(spec, weights, bundle.image_spec), EagerDecoder(spec.decoder, weights))


def _weights(bundle: Bundle, options: EngineOptions) -> Weights:
    from edgevlm.bundle.weights import ShippedWeights

    if options.device != "cpu":
        raise EdgeVLMError(f"Runtime 'eager' has no {options.device.upper()}: it is plain numpy, use --device cpu.")
    return ShippedWeights(bundle)


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


class EagerEncoder:
    """`Encoder` over `edgevlm.models` and any `Weights`: a bundle's, or a checkpoint's before any export."""

    name, device = NAME, DEVICE

    def __init__(self, spec: ModelSpec, weights: Weights, image: ImageSpec) -> None:
        self._spec, self._weights, self._image = spec, weights, image

    def encode(self, views: Sequence[U8]) -> list[F32]:
        # View by view, so that the largest activation is one view's.
        return [encode_view(self._spec, self._weights, normalize(view, self._image)) for view in views]

    def close(self) -> None:
        """There is nothing to free."""


class EagerDecoder:
    """`Decoder` over `edgevlm.models` and any `Weights`."""

    name, device, rounds = NAME, DEVICE, False

    def __init__(self, spec: Decoder, weights: Weights, *, keep: bool = True) -> None:
        """keep: hold the weights in memory as float32 after their first use (see `CachedWeights`)."""
        self._spec, self._weights = spec, CachedWeights(weights) if keep else weights
        self._states, self.layout, self._position = States(), Layout(0), 0
        self._hidden = np.zeros(spec.hidden_size, np.float32)

    def embed(self, ids: I64) -> F32:
        rows: F32 = embed_tokens(EagerOps(self._weights), ids, self._spec)
        return rows

    def forward(self, embeds: F32, layout: Layout | None = None, stopped: Callable[[], bool] = never) -> F32:
        """In one call."""
        last: F32 = self._forward(embeds, layout, 1)[-1]
        return last

    def _forward(self, embeds: F32, layout: Layout | None, keep: int) -> F32:
        total = self._position + len(embeds)
        if total > self._spec.context_length:
            raise context_error(total, self._spec.context_length)
        # An interrupt in an earlier call may have left layers of different lengths.
        self._states.cut(self._position)
        if layout is not None:
            self.layout = layout
        inputs = decoder_inputs(self._spec, self.layout, self._position, len(embeds))
        ops = EagerOps(self._weights, self._states, inputs, keep=keep)
        states = hidden_states(ops, embeds, self._spec)
        logits: F32 = head(ops, states, self._spec)
        self._hidden, self._position = states[-1].copy(), total
        return logits

    def hidden_state(self) -> F32:
        return self._hidden

    def step(self, token: int) -> F32:
        return self.forward(self.embed(np.array([token], np.int64)))

    @property
    def most_steps(self) -> int:
        return 0 if self._spec.replaces else self._spec.context_length

    def steps(self, tokens: Sequence[int]) -> F32:
        return self._forward(self.embed(np.array(tokens, np.int64)), None, len(tokens))

    @property
    def position(self) -> int:
        return self._position

    def rewind(self, length: int) -> None:
        self._position = rewound(self._spec, self._position, length)
        self._states.cut(self._position)
        if self._position == 0:
            self.layout = Layout(0)

    def copied(self) -> dict[str, npt.NDArray[Any]]:
        return dict(self._states.replaced)  # no array is changed in place

    def go_back(self, length: int, copied: Mapping[str, npt.NDArray[Any]]) -> None:
        self._states.cut(length)
        self._states.replaced |= copied
        self._position = length

    def close(self) -> None:
        self.rewind(0)
        if isinstance(self._weights, CachedWeights):
            self._weights.clear()


def encode_view(spec: ModelSpec, weights: Weights, pixels: F32) -> F32:
    """Normalized pixels (3, H, W) to features (tokens, D)."""
    feeds = spec.vision.feeds(pixels)
    features: F32 = image_features(EagerOps(weights, inputs=feeds), spec, feeds)
    first: F32 = features[0]
    return first
