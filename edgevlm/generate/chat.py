"""A conversation: questions one after the other, each of which the decoder reads where the last answer ended."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from edgevlm.errors import Closed, EdgeVLMError, Unsupported
from edgevlm.generate.answer import Answer, AnswerStream
from edgevlm.generate.given import Kept, Pictures, keep, pictures_of
from edgevlm.generate.loop import Pipeline
from edgevlm.generate.sampling import GenerateOptions
from edgevlm.inputs.prompt import Prompter
from edgevlm.inputs.render import Conversation, Said
from edgevlm.io.options import shown


@dataclass(frozen=True)
class AskOptions(GenerateOptions):
    """How a question is put and its answer chosen."""

    max_tiles: int | None = None  # the most tiles of a picture; 1 is the whole picture only; None is the model's rule
    thinking: bool | None = None  # whether to think before the answer, where the model has a switch; None: its default


def put(
    pipeline: Pipeline, question: Conversation, pictures: Pictures, options: GenerateOptions | None
) -> AnswerStream:
    """`Pipeline.ask` with everything that is optional in the options."""
    asked = AskOptions() if options is None else options
    tiles, thinking = (asked.max_tiles, asked.thinking) if isinstance(asked, AskOptions) else (None, None)
    return pipeline.ask(pictures, question, asked, max_tiles=tiles, thinking=thinking)


def warm_up(pipeline: Pipeline) -> None:
    """Answer a question about a blank picture, so that the first real one finds everything in memory."""
    options = AskOptions(max_tokens=2, max_tiles=1)
    try:
        _ = put(pipeline, "Hello", [Image.new("RGB", (64, 64))], options).answer
    except Unsupported:  # a bundle whose engine takes no pictures
        _ = put(pipeline, "Hello", (), options).answer


@dataclass(frozen=True)
class ChatTurn:
    """A question with its pictures, and the whole answer."""

    question: str
    pictures: tuple[Kept, ...]
    answer: Answer


class Chat:
    """Turns that were answered to their end. An answer that was cancelled, closed, dropped or failed leaves the
    conversation as it was before its question.

    Any thread may ask, but a conversation is one: a question waits for the answer before it.
    """

    def __init__(self, pipeline: Callable[[], Pipeline], system: str | None = None) -> None:
        """pipeline: gives what answers. system: text before the first turn.

        Raises EdgeVLMError where the model takes no system message.
        """
        self._pipeline, self._system = pipeline, system
        self._turns: list[ChatTurn] = []
        self._lock = threading.RLock()
        self._closed = False
        self._open: Callable[[], AnswerStream | None] = lambda: None
        if system is not None and not isinstance(system, str):
            raise EdgeVLMError(f"The system message is of type {type(system).__name__}: give a text, or None.")
        if system is not None and "system" not in pipeline().bundle.prompt_spec.chat.roles:
            raise Unsupported("This model takes no system message: leave it out, and say it in the first question.")

    @property
    def turns(self) -> tuple[ChatTurn, ...]:
        return tuple(self._turns)

    @property
    def tokens_used(self) -> int:
        """Positions of the model's context that the conversation takes."""
        last = self._turns[-1].answer.timings if self._turns else None
        return last.prompt_tokens + last.answer_tokens if last else 0

    def ask(self, question: str, pictures: Pictures = (), options: GenerateOptions | None = None) -> AnswerStream:
        """Start the next turn. Raises EdgeVLMError as `Pipeline.ask`, and ContextFull when the context is used up."""
        if not isinstance(question, str):
            raise EdgeVLMError(f"The question is of type {type(question).__name__}: give a text.")
        with self._lock:
            self._settle()
            pipeline = self._pipeline()
            tiles = options.max_tiles if isinstance(options, AskOptions) else None
            own = tuple(keep(picture, tiles) for picture in pictures_of(pictures))
            stream = put(pipeline, [*self.messages(pipeline.prompter), _question(question, own)], (), options)
            stream.when_whole = lambda answer: self._add(ChatTurn(question, own, answer))
            self._open = weakref.ref(stream)
            return stream

    def answer(self, question: str, pictures: Pictures = (), options: GenerateOptions | None = None) -> Answer:
        """As `ask`, run to the end."""
        return self.ask(question, pictures, options).answer

    def messages(self, prompter: Prompter) -> list[dict[str, Any]]:
        """What was said so far, as `Pipeline.ask` takes it."""
        said: list[dict[str, Any]] = []
        if self._system is not None:
            said.append({"role": "system", "content": self._system})
        for turn in self._turns:
            said.append(_question(turn.question, turn.pictures))
            said.append({"role": "assistant", "content": said_of(prompter, turn.answer)})
        return said

    def rewind(self, turns: int = 1) -> None:
        """Forget the last turns."""
        with self._lock:
            self._settle()
            if type(turns) is not int or not 0 <= turns <= len(self._turns):
                raise EdgeVLMError(
                    f"{shown(turns)} turns cannot be taken back: give a number from 0 to {len(self._turns)}."
                )
            del self._turns[len(self._turns) - turns :]

    def close(self) -> None:
        """Forget everything. Calling it twice is harmless."""
        with self._lock:
            if (stream := self._open()) is not None:
                stream.close()
            self._closed = True
            self._turns.clear()

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _settle(self) -> None:
        """An answer that is under way is computed to its end."""
        if self._closed:
            raise Closed("The chat is closed: begin another one.")
        if (stream := self._open()) is not None:
            stream.settle()
        self._open = lambda: None

    def _add(self, turn: ChatTurn) -> None:
        if turn.answer.finish_reason != "cancelled":
            self._turns.append(turn)


def _question(text: str, pictures: tuple[Kept, ...]) -> dict[str, Any]:
    images = [{"type": "image", "image": picture} for picture in pictures]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


def said_of(prompter: Prompter, answer: Answer) -> Said:
    """An answer as the text of a later message, with the tokens that it is made of."""
    ended = answer.ids[-1:] and answer.ids[-1] in prompter.spec.stop_ids
    ids = answer.ids[:-1] if ended else answer.ids
    return Said(answer.text, ids, prompter.decode(ids, special=True))
