"""What a decoder's cache holds, and how much of a new prompt that is: nothing is computed twice.

A conversation's next turn begins with all that was said before, and two questions about one picture begin alike. The
longest beginning that a decoder holds is kept, and only the rest is read. Read in other pieces, the same positions have
the same states up to how the engine rounds: an answer is that of the same calls, not bit for bit that of one call.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgevlm.generate.prompt import Prompt
from edgevlm.inputs.layout import behind, merge, unchanged
from edgevlm.models import spec
from edgevlm.runtimes.base import Decoder
from edgevlm.types import F32


class Held:
    """The prompt and the answer whose states a decoder holds. Called by one thread at a time."""

    def __init__(self, decoder: Decoder, d: spec.Decoder, reuse: bool = True) -> None:
        """reuse: False reads every prompt whole, so that no answer depends on what was asked before."""
        self._decoder, self._spec, self._reuse = decoder, d, reuse
        self.forget()

    def forget(self) -> None:
        """Trust nothing: a call was interrupted."""
        self._prompt: Prompt | None = None
        self._answer: Sequence[int] = ()

    def length(self, prompt: Prompt) -> int:
        """Positions of `prompt` that need not be read: all but one at most."""
        known, decoder = self._prompt, self._decoder
        # Somebody else may have used the decoder in between: then its layout is another object.
        if not self._reuse or known is None or decoder.layout is not known.layout:
            return 0
        held = np.concatenate([known.ids, np.array(self._answer, np.int64)])[: decoder.position]
        most = min(len(held), len(prompt.ids) - 1)
        other = np.flatnonzero(held[:most] != prompt.ids[:most])
        length = int(other[0]) if len(other) else most
        for span, ours, theirs in zip(prompt.layout.spans, known.picture_keys, prompt.picture_keys, strict=False):
            if ours != theirs:
                length = min(length, span.start)
                break
        length = unchanged(self._spec, known.layout, prompt.layout, length)
        return length if length == decoder.position or not self._spec.replaces else 0

    def read(self, prompt: Prompt, length: int, features: Sequence[F32], answer: Sequence[int]) -> F32:
        """Logits (V,) after the prompt, of which `length` positions are held.

        features: of the views that lie behind. answer: the list that the answer's tokens will be written to. The
        decoder is to be given each of them in turn, and may have a few more that will follow.
        """
        self.forget()
        self._decoder.rewind(length)
        embeds = merge(self._decoder.embed(prompt.ids[length:]), behind(prompt.layout, length), features)
        logits = self._decoder.forward(embeds, prompt.layout)
        self._prompt, self._answer = prompt, answer
        return logits
