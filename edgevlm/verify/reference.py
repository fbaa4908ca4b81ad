"""The eager reference as the gate and its relatives use it: features, embeddings, logits at many positions."""

from __future__ import annotations

import numpy as np

from edgevlm.inputs.preprocess import tile_key
from edgevlm.models.eager import EagerOps, KVCache
from edgevlm.models.llama import decoder, embed_tokens
from edgevlm.models.ops import Weights
from edgevlm.models.projector import projector
from edgevlm.models.siglip import vision_tower
from edgevlm.models.spec import ModelSpec
from edgevlm.types import F32, I64


class Reference:
    """Float32 numpy over any `Weights`, read tensor by tensor, so that memory stays near the largest one."""

    def __init__(self, spec: ModelSpec, weights: Weights, prompt_weights: Weights | None = None) -> None:
        """prompt_weights: what the prompt is read with, where an artifact has other weights for it."""
        self.spec, self.weights = spec, weights
        self.prompt_weights = prompt_weights or weights
        self._features: dict[bytes, F32] = {}
        self._logits: dict[bytes, F32] = {}

    def features(self, tiles: F32) -> F32:
        """Image features (T, n, D); a tile seen before is not computed again."""
        keys = [tile_key(tile) for tile in tiles]
        ops = EagerOps(self.weights)
        for key, tile in zip(keys, tiles, strict=True):
            if key not in self._features:
                states = vision_tower(ops, tile[None], self.spec.vision)
                self._features[key] = projector(ops, states, self.spec.projector)[0]
        return np.stack([self._features[key] for key in keys])

    def embed(self, ids: I64) -> F32:
        rows: F32 = embed_tokens(EagerOps(self.weights), ids)
        return rows

    def merge(self, ids: I64, features: F32, image_token_id: int, embeds: F32 | None = None) -> F32:
        """Embeddings (S, D) with the features in the places of the image token."""
        merged = np.array(self.embed(ids) if embeds is None else embeds)
        merged[ids == image_token_id] = features.reshape(-1, features.shape[-1])
        return merged

    def logits(self, prompt: F32, answer: F32 | None = None) -> F32:
        """Logits (1 + A, V) after a prompt (S, D) and after each further position (A, D) of an answer."""
        rest = prompt[:0] if answer is None else answer
        key = tile_key(prompt) + tile_key(rest)
        if key not in self._logits:
            self._logits[key] = self._compute(prompt, rest)
        return self._logits[key]

    def _compute(self, prompt: F32, answer: F32) -> F32:
        text, cache = self.spec.decoder, KVCache(self.spec.decoder)
        if self.prompt_weights is self.weights:  # one pass reads each weight once
            ops = EagerOps(self.weights, cache, keep=len(answer) + 1)
            whole: F32 = decoder(ops, np.concatenate([prompt, answer]), text)
            return whole
        first: F32 = decoder(EagerOps(self.prompt_weights, cache), prompt, text)
        if not len(answer):
            return first
        ops = EagerOps(self.weights, cache, keep=len(answer))
        return np.concatenate([first, decoder(ops, answer, text)])


def cosine(ours: F32, theirs: F32, *, lowest: bool = True) -> float:
    """Lowest (or mean) cosine between matching last-axis vectors; 0 where a value is not finite."""
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return 0.0
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines = np.divide((a * b).sum(-1), norms, out=np.zeros_like(norms), where=norms > 0)
    return float(cosines.min() if lowest else cosines.mean())
