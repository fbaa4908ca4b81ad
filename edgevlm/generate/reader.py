"""The text of an answer as its tokens come: without white space before its first word, and up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm.inputs.tokenizer import StreamDecoder


class Reader:
    """Tokens to pieces of text. `stopped` says that a stop string came; it is no part of the text, nor is what follows.

    Of several stop strings the one that is complete first counts, and of those that end at one place the longest. What
    may be the beginning of one is held back until it is known, so that pieces never show a part of it.
    """

    def __init__(self, stream: StreamDecoder, stop: Sequence[str] = (), lead: str | None = None) -> None:
        """lead: characters that are left out at the beginning; None is white space of any kind."""
        self._stream, self._stop, self._lead = stream, stop, lead
        self._begun, self._held = False, ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is known to belong to the answer now; often empty."""
        return self._add(self._stream.push(token))

    def finish(self) -> str:
        """The rest."""
        if self.stopped:
            return ""
        return self._add(self._stream.finish()) + ("" if self.stopped else self._held)

    def _add(self, piece: str) -> str:
        # Chat formats that end in "Assistant:" make the first token begin with a space.
        piece = piece if self._begun else piece.lstrip(self._lead)
        self._begun |= bool(piece)
        text = self._held + piece
        if found := [(text.index(stop) + len(stop), text.index(stop)) for stop in self._stop if stop in text]:
            self.stopped = True
            return text[: min(found)[1]]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        shown, self._held = text[: len(text) - keep], text[len(text) - keep :]
        return shown


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    most = min(len(text), len(stop) - 1)
    return next((count for count in range(most, 0, -1) if text.endswith(stop[:count])), 0)
