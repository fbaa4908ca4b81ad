"""Positions at which a text names one thing of its picture; a hidden state there learns the thing's box, or its word.

To answer, a decoder must look a name up in the picture and then pass on the result. Answers teach neither step until
both work: from answers alone, boxes stayed at chance for thousands of steps. A label at half the depth teaches the
first. A word is spelled letter by letter, and keeping all of it at every letter is harder than spelling it: in an
answer, the label is the next letter and the two after it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from edgevlm.scenes.catalogue import NOUN_INDEX, SIGN
from edgevlm.train.examples import IGNORE
from edgevlm.train.shipped.batches import LabelledExample
from edgevlm.train.shipped.heads import LETTERS, Targets

_ABOUT_ONE = ("text", "grounding", "colour")
_AHEAD = 2  # letters


class NamedPositions(NamedTuple):
    """N positions of a batch, each of which refers to one thing."""

    row: Tensor  # (N,)
    column: Tensor  # (N,)
    bins: Tensor  # (N, 4) the thing's box
    spelled: Tensor  # (N, LETTERS) a sign's characters; 0 for none, IGNORE for those that have no loss here
    sign: Tensor  # (N,) bool, whether any character has a loss


class NameFinder:
    """Finds the positions of names by a tokenizer in which each name is one token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._noun = torch.full((tokenizer.get_vocab_size(),), -1)
        for name, number in NOUN_INDEX.items():
            self._noun[tokenizer.encode(f" {name}").ids[0]] = number

    def names(self, ids: Tensor, target: Targets) -> NamedPositions:
        """Positions of ids (B, L) that name a thing of which the picture shows exactly one."""
        nouns = self._noun[ids]
        row, column = (nouns >= 0).nonzero(as_tuple=True)
        return self._known(row, column, nouns[row, column], target)

    def answers(self, examples: list[LabelledExample], target: Targets) -> NamedPositions:
        """The positions that predict an answer about one thing: its colour, its box, or its word."""
        found: list[tuple[int, int, int, int]] = []
        for row, (example, skills, _) in enumerate(examples):
            nouns = self._noun[torch.from_numpy(example.ids)].numpy()
            answer = example.targets != IGNORE
            for segment, skill in enumerate(skills, 1):
                own = example.segments == segment
                about = set(nouns[own & ~answer].tolist()) - {-1}
                if skill == "text" and not about:
                    about = {NOUN_INDEX[SIGN.name]}
                if skill in _ABOUT_ONE and len(about) == 1:
                    said = enumerate(np.flatnonzero(own & answer).tolist())  # a space is the first
                    found += [(row, column, *about, n - 1 if skill == "text" else LETTERS) for n, column in said]
        rows, columns, which, letter = torch.tensor(found, dtype=torch.long).reshape(-1, 4).T
        ahead = torch.arange(LETTERS) - letter[:, None]
        return self._known(rows, columns, which, target, (ahead >= 0) & (ahead <= _AHEAD))

    @staticmethod
    def _known(
        row: Tensor, column: Tensor, noun: Tensor, target: Targets, letters: Tensor | None = None
    ) -> NamedPositions:
        parts = target.things.amax(2)  # (B, G * G, nouns)
        token = parts.argmax(1)[row, noun]
        bins = target.bins[row, token]
        one = (target.things.sum((1, 2))[row, noun] - 1).abs() < 0.1
        seen = one & (parts.amax(1)[row, noun] >= 0.25) & (bins[:, 0] >= 0)
        sign = noun == NOUN_INDEX[SIGN.name]
        spelled = target.spelled.amax(1)[row] * sign[:, None]
        if letters is not None:
            spelled, sign = spelled.masked_fill(~letters, IGNORE), sign & letters.any(1)
        return NamedPositions(row[seen], column[seen], bins[seen], spelled[seen], sign[seen])
