"""The eager reference of the gate and of `--across`: features, embeddings, logits at many positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgevlm.inputs.layout import Layout, decoder_inputs, merge
from edgevlm.inputs.preprocess import array_key, normalize
from edgevlm.inputs.spec import ImageSpec
from edgevlm.models.decoder import decoder, embed_tokens
from edgevlm.models.eager import EagerOps
from edgevlm.models.model import ModelSpec
from edgevlm.models.ops import Weights
from edgevlm.models.states import States
from edgevlm.runtimes.eager import encode_view
from edgevlm.types import F32, I64, U8


class Reference:
    """Float32 numpy over any `Weights`, read tensor by tensor, so that memory stays near the largest one."""

    def __init__(
        self, spec: ModelSpec, weights: Weights, image: ImageSpec, prompt_weights: Weights | None = None
    ) -> None:
        """prompt_weights: what the prompt is read with, where an artifact has other weights for it."""
        self.spec, self.weights, self.image = spec, weights, image
        self.prompt_weights = prompt_weights or weights
        self._features: dict[bytes, F32] = {}
        self._logits: dict[bytes, F32] = {}

    def features(self, views: Sequence[U8]) -> list[F32]:
        """Image features (tokens, D) of each view (H, W, 3); a view seen before is not computed again."""
        keys = [array_key(view) for view in views]
        for key, view in zip(keys, views, strict=True):
            if key not in self._features:
                self._features[key] = encode_view(self.spec, self.weights, normalize(view, self.image))
        return [self._features[key] for key in keys]

    def embed(self, ids: I64) -> F32:
        rows: F32 = embed_tokens(EagerOps(self.weights), ids, self.spec.decoder)
        return rows

    def prompt(self, ids: I64, layout: Layout, views: Sequence[U8]) -> F32:
        """Embeddings (S, D) of a prompt, with its views' features."""
        return merge(self.embed(ids), layout, self.features(views))

    def logits(self, prompt: F32, answer: F32 | None = None, layout: Layout | None = None) -> F32:
        """Logits (1 + A, V) after a prompt (S, D) and after each further position (A, D) of an answer.

        layout: of the prompt, or of a longer one that it begins; None is one without pictures.
        """
        rest = prompt[:0] if answer is None else answer
        layout = layout or Layout(len(prompt))
        key = array_key(prompt) + array_key(rest) + repr(layout).encode()
        if key not in self._logits:
            self._logits[key] = self._compute(prompt, rest, layout)
        return self._logits[key]

    def _compute(self, prompt: F32, answer: F32, layout: Layout) -> F32:
        d, held = self.spec.decoder, States()

        def play(weights: Weights, x: F32, past: int, keep: int) -> F32:
            inputs = decoder_inputs(d, layout, past, len(x))
            logits: F32 = decoder(EagerOps(weights, held, inputs, keep=keep), x, d)
            return logits

        if self.prompt_weights is self.weights:  # one pass reads each weight once
            return play(self.weights, np.concatenate([prompt, answer]), 0, len(answer) + 1)
        first = play(self.prompt_weights, prompt, 0, 1)
        if not len(answer):
            return first
        return np.concatenate([first, play(self.weights, answer, len(prompt), len(answer))])


def cosine(ours: F32, theirs: F32, *, lowest: bool = True) -> float:
    """Lowest (or mean) cosine between matching last-axis vectors; 0 where a value is not finite."""
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return 0.0
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines = np.divide((a * b).sum(-1), norms, out=np.zeros_like(norms), where=norms > 0)
    return float(cosines.min() if lowest else cosines.mean())
