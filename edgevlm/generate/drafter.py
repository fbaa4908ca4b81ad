"""Guesses of what an answer says next: what followed the last time that its last tokens stood in a row.

Prompt-lookup decoding (`prompt_lookup_num_tokens` of transformers), after LLMA (Yang et al. 2023, arXiv 2304.04487).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

LONGEST, SHORTEST = 3, 2  # tokens in a row that have to be the same
LENGTHS = (3, 7)  # tokens of a draft: with the token before it a call of 4 or 8 rows, which kernels work in groups of
LONGEST_PAUSE = 32  # tokens


class Drafter:
    """Question and answer so far, with the place behind every few tokens in a row that occurs in them."""

    def __init__(self, ids: Sequence[int], never: Collection[int] = ()) -> None:
        """ids: the prompt. never: tokens that no draft holds."""
        self.ids: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}
        self._never = frozenset(never)
        for token in ids:
            self.push(token)

    def push(self, token: int) -> None:
        """One more token. What stands at the very end is not in the table yet: an occurrence is an earlier one."""
        end = len(self.ids)
        for size in range(SHORTEST, min(LONGEST, end) + 1):
            self._behind[tuple(self.ids[end - size :])] = end
        self.ids.append(token)

    def draft(self, count: int) -> list[int]:
        """`count` tokens, or fewer where one would be among `never`; none where the last tokens are new.

        The latest occurrence of the longest run counts. A draft that reaches the end goes on in itself, as periods do.
        """
        for size in range(min(LONGEST, len(self.ids)), SHORTEST - 1, -1):
            place = self._behind.get(tuple(self.ids[-size:]))
            if place is not None:
                break
        else:
            return []
        found: list[int] = []
        for at in range(place, place + count):
            token = self.ids[at] if at < len(self.ids) else found[at - len(self.ids)]
            if token in self._never:
                break
            found.append(token)
        return found


class Pace:
    """How long drafts are, by how the last ones went: longer after one that was right, rarer after failures."""

    def __init__(self) -> None:
        self._long = False
        self._pause, self._wait = 1, 0

    def length(self, room: int) -> int:
        """Of the next draft, with `room` tokens at most; 0 for none."""
        if self._wait:
            self._wait -= 1
            return 0
        fitting = [length for length in LENGTHS[: 1 + self._long] if length <= room]
        return fitting[-1] if fitting else 0

    def judge(self, right: int, count: int) -> None:
        """`right` of a draft's `count` tokens were what the model says. Half of them pay for the call on any engine."""
        self._long = right == count
        if 2 * right >= count:
            self._pause = 1
        else:
            self._wait, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
