"""Greedy answers with several tokens to a call: drafts are checked together, and an answer is what it is without them.

Engines need not compute the same for a position alone and among others: kernels add in another order, and where
activations are rounded to 8 bits, a last bit becomes a step of such a code. So calls of several positions are first
tried against single ones, and count only where both agree, or nearly do and the choice is clear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from edgevlm.generate.drafter import LENGTHS, Drafter, Pace
from edgevlm.runtimes.base import DraftDecoder
from edgevlm.types import F32

# By how much the best token's logit has to exceed the second's, in the largest errors that the trial saw. Both may be
# off by one; the rest is for what the trial did not see.
SAFETY = 16.0
LEAST = 1e-4  # of that lead, also where the trial saw no error at all
COARSE = 1e-2  # a lead that too many choices lack: positions together are then of no use


@dataclass
class Trial:
    """How far apart an engine's logits are for positions together and alone. One for each decoder.

    rounds: the engine rounds activations to 8 bits. Where its results differ at all, a last bit can then become a step
    of such a code, whether the trial met one or not.
    """

    rounds: bool = False
    error: float = 0.0
    _left: dict[int, int] = field(default_factory=lambda: {length + 1: length + 1 for length in LENGTHS})

    def wants(self, rows: int) -> bool:
        """Whether a call of so many positions is still on trial: as many as it has must have been compared."""
        return self._left[rows] > 0

    def compare(self, rows: int, together: F32, alone: F32) -> None:
        """Logits (V,) of one position of a call of `rows`, and by itself."""
        self.error = max(self.error, float(np.abs(together - alone).max()))
        self._left[rows] -= 1

    @property
    def lead(self) -> float:
        return max(LEAST, SAFETY * self.error)

    @property
    def coarse(self) -> bool:
        return self.lead > COARSE or (self.rounds and self.error > 0)


class Lookup:
    """One greedy answer's tokens after the first. `looked_up` counts those that a draft had."""

    def __init__(
        self,
        decoder: DraftDecoder,
        drafter: Drafter,
        trial: Trial,
        choose: Callable[[F32], int],
        room: int,
        force: bool,
    ) -> None:
        """drafter: holds the prompt, which the decoder has read. choose: logits (V,) to a token, by the largest.

        room: tokens that may follow the first. force: check drafts on an engine that is coarse, too.
        """
        self._decoder, self._drafter, self._trial, self._choose = decoder, drafter, trial, choose
        self._room, self._force = room, force
        self._pace = Pace()
        self._exact = decoder.position  # positions whose states are those of single calls
        self.looked_up = 0

    def after(self, token: int) -> Iterator[int]:
        """The tokens behind the first, for as long as they are asked for. No position is computed that single calls
        would not have computed by the time the answer is full."""
        while True:
            self._drafter.push(token)
            found = self._next(token)
            self._room -= len(found)
            for token in found[:-1]:
                self._drafter.push(token)
                yield token
            token = found[-1]
            yield token

    def _next(self, token: int) -> list[int]:
        usable = self._force or not self._trial.coarse
        count = self._pace.length(self._room - 1) if usable else 0
        draft = self._drafter.draft(count) if count else []
        draft = draft[: max((length for length in LENGTHS if length <= len(draft)), default=0)]
        if not draft:
            return [self._step(token)]
        check = self._try if self._trial.wants(len(draft) + 1) and not self._trial.coarse else self._check
        found = check(token, draft)
        self._pace.judge(len(found) - 1, len(draft))
        self.looked_up += len(found) - 1
        return found

    def _step(self, token: int) -> int:
        exact = self._exact == self._decoder.position
        logits = self._decoder.step(token)
        if exact:
            self._exact = self._decoder.position
        elif self._unclear(logits):
            logits = self._again(self._drafter.ids[self._exact :])
        return self._choose(logits)

    def _try(self, token: int, draft: list[int]) -> list[int]:
        """Together and alone; what counts are the single calls."""
        start, rows = self._decoder.position, [token, *draft]
        together = self._decoder.steps(rows)
        self._decoder.rewind(start)
        found: list[int] = []
        for row, wanted in zip(together, [*draft, -1], strict=True):
            exact = self._exact == self._decoder.position
            alone = self._decoder.step(rows[len(found)])
            self._exact = self._decoder.position if exact else self._exact
            self._trial.compare(len(rows), row, alone)
            if not exact and self._unclear(alone):
                alone = self._again(self._drafter.ids[self._exact :] + found)
            found.append(self._choose(alone))
            if found[-1] != wanted:
                break
        return found

    def _check(self, token: int, draft: list[int]) -> list[int]:
        start, found = self._decoder.position, list[int]()
        for row, wanted in zip(self._decoder.steps([token, *draft]), [*draft, -1], strict=True):
            if self._unclear(row):
                return [*found, self._choose(self._again(self._drafter.ids[self._exact :] + found))]
            found.append(self._choose(row))
            if found[-1] != wanted:
                break
        self._decoder.rewind(start + len(found))
        return found

    def _unclear(self, logits: F32) -> bool:
        """Whether single calls all the way may choose another token."""
        if self._trial.coarse:
            return not self._force
        return bool(np.count_nonzero(logits >= logits.max() - self._trial.lead) > 1)

    def _again(self, tokens: list[int]) -> F32:
        """Logits after `tokens`, all that came since the states were last exact, one by one."""
        self._decoder.rewind(self._exact)
        for token in tokens:
            logits = self._decoder.step(token)
        self._exact = self._decoder.position
        return logits
