"""An answer for asyncio: computed in a thread, read in an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future

from edgevlm.errors import Closed
from edgevlm.generate.answer import Answer, AnswerStream


class AsyncAnswerStream:
    """`async for` gives the pieces, `await stream.answer()` the whole. Made within a running event loop.

    Nobody who reads slowly keeps the thread waiting. A task that is cancelled while it waits for a piece cancels the
    answer, and so does leaving an `async with` block.
    """

    def __init__(self, start: Callable[[], AnswerStream], pool: Executor) -> None:
        """start: puts the question, in the thread."""
        self._loop, self._start = asyncio.get_running_loop(), start
        self._pieces: asyncio.Queue[str | Answer | BaseException] = asyncio.Queue()
        self._cancelled, self._stream = threading.Event(), list[AnswerStream]()
        self._end: Answer | BaseException | None = None
        pool.submit(self._work).add_done_callback(self._ended)

    def cancel(self) -> None:
        """As `AnswerStream.cancel`; a question whose turn has not come is not even prepared."""
        self._cancelled.set()
        for stream in self._stream:
            stream.cancel()

    async def answer(self) -> Answer:
        """The complete answer; what was not iterated yet is waited for."""
        async for _ in self:
            pass
        if isinstance(self._end, BaseException):
            raise self._end
        assert self._end is not None
        return self._end

    def __aiter__(self) -> AsyncIterator[str]:
        return self._read()

    async def __aenter__(self) -> AsyncAnswerStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.cancel()

    async def _read(self) -> AsyncIterator[str]:
        while self._end is None:
            try:
                piece = await self._pieces.get()
            except asyncio.CancelledError:
                self.cancel()
                raise
            if isinstance(piece, str):
                yield piece
            else:
                self._end = piece
        if isinstance(self._end, BaseException):
            raise self._end

    def _work(self) -> Answer:
        if self._cancelled.is_set():
            raise Closed("The question was cancelled before its turn: ask it again.")
        stream = self._start()
        self._stream.append(stream)
        if self._cancelled.is_set():  # between the two lines above
            stream.cancel()
        for piece in stream:
            self._give(piece)
        return stream.answer

    def _ended(self, work: Future[Answer]) -> None:
        if work.cancelled():
            self._give(Closed("The model was closed before the question's turn: load it again with edgevlm.load."))
        else:
            self._give(work.exception() or work.result())

    def _give(self, piece: str | Answer | BaseException) -> None:
        try:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
        except RuntimeError:  # the event loop is closed: nobody reads any more
            self.cancel()
