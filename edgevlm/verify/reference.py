"""The eager reference of the gate and of `--across`: features, embeddings, logits at many positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgevlm.inputs.layout import Layout, decoder_inputs, merge
from edgevlm.inputs.preprocess import array_key, normalize
from edgevlm.inputs.spec import ImageSpec
from edgevlm.models.decoder import embed_tokens, head, hidden_states
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
        self._read: dict[bytes, tuple[F32, States]] = {}
        self._hidden: dict[bytes, F32] = {}

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
            last, held = self._read_prompt(prompt, layout)
            more = [self._play(self.weights, rest, held.fork(), layout, len(prompt))[0]] if len(rest) else []
            self._logits[key] = np.concatenate([last, *more])
        return self._logits[key]

    def hidden_state(self, prompt: F32, layout: Layout) -> F32:
        """What the last layer gives at the last position of a prompt: (D,)."""
        self._read_prompt(prompt, layout)
        return self._hidden[_key(prompt, layout)]

    def _read_prompt(self, prompt: F32, layout: Layout) -> tuple[F32, States]:
        """The last logits and the states behind a prompt, which is read once however many answers follow it."""
        key = _key(prompt, layout)
        if key not in self._read:
            held = States()
            logits, self._hidden[key] = self._play(self.prompt_weights, prompt, held, layout, 0, keep=1)
            self._read[key] = logits, held
        return self._read[key]

    def _play(
        self, weights: Weights, x: F32, held: States, layout: Layout, past: int, keep: int | None = None
    ) -> tuple[F32, F32]:
        """Logits, and what the last layer gives at the last position."""
        inputs = decoder_inputs(self.spec.decoder, layout, past, len(x))
        ops = EagerOps(weights, held, inputs, keep=len(x) if keep is None else keep)
        states = hidden_states(ops, x, self.spec.decoder)
        return head(ops, states, self.spec.decoder), states[-1].copy()


def _key(prompt: F32, layout: Layout) -> bytes:
    return array_key(prompt) + repr(layout).encode()


def cosine(ours: F32, theirs: F32, *, lowest: bool = True) -> float:
    """Lowest (or mean) cosine between matching last-axis vectors; 0 where a value is not finite."""
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return 0.0
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines = np.divide((a * b).sum(-1), norms, out=np.zeros_like(norms), where=norms > 0)
    return float(cosines.min() if lowest else cosines.mean())
