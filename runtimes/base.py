"""What every engine offers. The loop in edgevlm.generate.loop is written against this and nothing else."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from edgevlm.inputs.layout import Layout
from edgevlm.models.model import ModelSpec
from edgevlm.types import F32, I64

__all__ = ["F32", "I64", "Runtime", "no_features"]


class Runtime(Protocol):
    """One loaded bundle on one engine, holding one conversation's KV cache.

    T tiles, n image tokens per tile, D decoder hidden size, V vocabulary size, S positions. All arrays float32.
    """

    name: str  # "onnxruntime", "eager", "llama.cpp", "coreml"
    device: str  # what it really runs on, in words: "CPU (2 threads)"

    def encode(self, pixels: F32) -> F32:
        """Normalized tiles (T, 3, H, W) to image features (T, n, D)."""

    def embed(self, ids: I64) -> F32:
        """Token ids (S,) to embeddings (S, D)."""

    def prefill(self, embeds: F32, layout: Layout | None = None) -> F32:
        """Append S positions (S, D) to the cache; logits (V,) after the last one.

        layout: of the whole prompt, given with its first part; None goes on under the one before.
        """

    def step(self, token: int) -> F32:
        """Append one token to the cache; logits (V,) after it."""

    @property
    def position(self) -> int:
        """Positions in the cache."""

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on; 0 starts a new conversation."""

    def close(self) -> None:
        """Free the engine. Calling it twice is harmless."""


def no_features(spec: ModelSpec, pixels: F32) -> F32:
    """What `encode` gives for no tiles: (0, n, D)."""
    rows, cols = spec.token_grid(*pixels.shape[2:])
    return np.empty((0, rows * cols, spec.decoder.hidden_size), np.float32)
