"""An answer, whole and as it comes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from threading import Event

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.grounding import Box, Point
from edgevlm.runtimes.base import Turn


@dataclass
class Timings:
    """Seconds and amount of work of each stage. The consumer's own time between pieces is not in them."""

    preprocess: float = 0.0  # decode, resize and cut the pictures, build the prompt
    encode: float = 0.0  # views to image features
    prefill: float = 0.0  # prompt to the logits of the first token
    decode: float = 0.0  # the answer's tokens after the first
    scoring: float = 0.0  # the choices' log probabilities, where they are asked for
    image_tokens: int = 0
    prompt_tokens: int = 0  # image tokens included
    answer_tokens: int = 0
    reused_tokens: int = 0  # of the prompt's, those that the decoder had read for the question before
    looked_up: int = 0  # of these, tokens that were guessed from the text before and checked together
    peak_memory: int | None = None  # bytes, the process's largest resident set so far; None where unknown

    @property
    def tokens_per_second(self) -> float:
        """Speed of decode; the first token comes out of prefill and does not count. 0 for one token."""
        return (self.answer_tokens - 1) / self.decode if self.decode > 0 else 0.0


@dataclass(frozen=True)
class Answer:
    text: str  # without white space before its first word, which some chat formats make the model write
    ids: tuple[int, ...]  # with the stop token where there was one, as transformers' generate gives them
    timings: Timings
    # "stop": the model ended its answer, its form was complete, or a stop string came; "length": max_tokens or the
    # context length ended it; "cancelled": `cancel` did.
    finish_reason: str
    # In pixels of the picture, where the model writes them; of several pictures an answer does not say which one it
    # means, and there are none.
    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    # The logarithm of each choice's probability, given that the answer is one of them; None where not asked for.
    scores: dict[str, float] | None = None


class AnswerStream:
    """Iterate for the text's pieces as they come; `answer` then holds the whole.

    The engine works while a piece is waited for. Where another question needs the engine in between, that one computes
    the rest of this answer first, and the pieces wait here: a stream may be read slowly, and from any thread. One that
    is dropped costs nothing more; `close` stops one that is kept, and so does leaving a `with` block.
    """

    def __init__(self, run: Generator[str, None, Answer], turn: Turn, cancelled: Event) -> None:
        """cancelled: what `run` looks at between its calls."""
        self._run, self._turn, self._cancelled = run, turn, cancelled
        self.when_whole: Callable[[Answer], None] | None = None  # called with the answer, once
        self._pieces: deque[str] = deque()  # computed and not read yet
        self._answer: Answer | None = None
        self._failed: Exception | None = None
        self._stopped = False

    def __iter__(self) -> Iterator[str]:
        while (piece := self._next()) is not None:
            yield piece

    @property
    def answer(self) -> Answer:
        """The complete answer; runs through what was not iterated yet. Raises EdgeVLMError after `close`."""
        for _ in self:
            pass
        if self._answer is None:
            raise EdgeVLMError("The answer was stopped before its end: ask again for the whole.")
        return self._answer

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def cancel(self) -> None:
        """End the answer after the call that is under way. Returns at once, from any thread, whoever waits for a piece.

        What was said until then is the answer, whose `finish_reason` is "cancelled".
        """
        self._cancelled.set()

    def close(self) -> None:
        """Compute nothing more. Iteration ends after the pieces that are there."""
        with self._turn.lock:
            self._run.close()
            self._stopped = True

    def settle(self) -> None:
        """Compute the rest now, whoever reads it later."""
        with self._turn.lock:
            if not self._done:
                self._turn.take(self)
                self.finish()

    def finish(self) -> None:
        """Compute the rest, and keep it for the reader, an error too. Called with the turn's lock held."""
        while not self._done:
            self._advance()

    @property
    def _done(self) -> bool:
        return self._stopped or self._answer is not None or self._failed is not None

    def _next(self) -> str | None:
        with self._turn.lock:
            if not self._pieces and not self._done:
                self._turn.take(self)
                self._advance()
            if self._pieces:
                return self._pieces.popleft()
            if self._failed is not None:
                raise self._failed
            return None

    def _advance(self) -> None:
        try:
            self._pieces.append(next(self._run))
        except StopIteration as end:
            self._answer = end.value
            if self.when_whole is not None:
                self.when_whole(end.value)
        except Exception as error:  # for this answer's reader, who may be in another thread
            self._failed = error
        except BaseException:
            self._failed = EdgeVLMError("The answer was interrupted before its end: ask again.")
            raise
