"""What a decoder's cache holds, and how much of a new prompt that is: nothing is computed twice.

A conversation's next turn begins with all that was said before, and two questions about one picture begin alike. The
longest beginning that a decoder holds is kept, and only the rest is read. Read in other pieces, the same positions have
the same states up to how the engine rounds: an answer is that of the same calls, not bit for bit that of one call.

States that are overwritten cannot be cut. They are copied where a later prompt may part from this one, behind the last
picture and before each new turn, and a prompt that parts further on goes on from the copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgevlm.generate.array_folder import Arrays
from edgevlm.generate.prompt import Prompt
from edgevlm.generate.stored_states import StoredStates
from edgevlm.inputs.layout import behind, merge, unchanged
from edgevlm.models import spec
from edgevlm.runtimes.base import Decoder, ForkDecoder, SavedDecoder, Stopped, never
from edgevlm.types import F32

MOST_COPIES = 8


class Held:
    """The prompt and the answer whose states a decoder holds. Called by one thread at a time."""

    def __init__(
        self, decoder: Decoder, d: spec.Decoder, reuse: bool = True, stored: StoredStates | None = None
    ) -> None:
        """reuse: False reads every prompt whole, so that no answer depends on what was asked before.
        stored: states on disk, where the decoder can take them."""
        self._decoder, self._spec, self._reuse = decoder, d, reuse
        self._stored = stored if reuse and stored and isinstance(decoder, SavedDecoder) else None
        self._forks = reuse and d.replaces and isinstance(decoder, ForkDecoder)
        self.forget()

    def forget(self) -> None:
        """Trust nothing: a call was interrupted."""
        self._prompt: Prompt | None = None
        self._answer: Sequence[int] = ()
        self._copies: dict[int, Arrays] = {}  # of overwritten states, by positions before them

    def begin(self, prompt: Prompt) -> int:
        """Positions of `prompt` that need not be read: all but one at most. They are taken from disk where more of
        them are there."""
        length = self._length(prompt)
        if self._stored is None:
            return length
        place = self._behind_pictures(prompt)
        if place <= length or (saved := self._stored.read(prompt, place)) is None:
            return length
        assert isinstance(self._decoder, SavedDecoder)
        self.forget()
        self._decoder.restore(place, prompt.layout, saved)
        self._prompt = prompt
        self._copy(place)
        return place

    def read(
        self,
        prompt: Prompt,
        length: int,
        features: Sequence[F32],
        answer: Sequence[int],
        stopped: Callable[[], bool] = never,
    ) -> F32 | None:
        """Logits (V,) after the prompt, of which `length` positions are held; None where `stopped` said in between that
        they are not wanted any more.

        features: of the views that lie behind. answer: the list that the answer's tokens will be written to. The
        decoder is to be given each of them in turn, and may have a few more that will follow.
        """
        decoder, copies = self._decoder, self._copies
        self.forget()
        if 0 < length < decoder.position and length in copies:
            assert isinstance(decoder, ForkDecoder)
            decoder.go_back(length, copies[length])
        else:
            decoder.rewind(length)
        self._copies = {place: copies[place] for place in copies if place <= length}
        self._copy(length)
        embeds = merge(decoder.embed(prompt.ids[length:]), behind(prompt.layout, length), features)
        place = self._behind_pictures(prompt) if self._forks or self._stored else 0
        try:
            if place > length:
                decoder.forward(embeds[: place - length], prompt.layout, stopped)
                self._copy(place)
                if self._stored is not None:
                    assert isinstance(decoder, SavedDecoder)
                    self._stored.write(prompt, place, decoder.saved())
                if stopped():
                    raise Stopped
                logits = decoder.forward(embeds[place - length :], None, stopped)
            else:
                logits = decoder.forward(embeds, prompt.layout, stopped)
        except Stopped:
            self._prompt = prompt
            return None
        self._prompt, self._answer = prompt, answer
        return logits

    def _length(self, prompt: Prompt) -> int:
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
        if length == decoder.position or not self._spec.replaces:
            return length
        return max((place for place in self._copies if place <= length), default=0)

    def _behind_pictures(self, prompt: Prompt) -> int:
        """Where a later prompt may part from this one that asks about the same pictures; 0 where it cannot."""
        place = max((int(span.places[-1]) + 1 for span in prompt.layout.spans), default=0)
        whole = unchanged(self._spec, prompt.layout, prompt.layout, place) == place
        return place if whole and place < len(prompt.ids) else 0

    def _copy(self, place: int) -> None:
        if self._forks and 0 < place == self._decoder.position:
            assert isinstance(self._decoder, ForkDecoder)
            self._copies[place] = self._decoder.copied()
            while len(self._copies) > MOST_COPIES:
                self._copies.pop(sorted(self._copies)[1])  # the first is behind the pictures
