"""Sessions that answer, each in its own thread, and the queue before them.

A question goes to the free session that holds the longest beginning of its conversation; without a free one it waits,
first come, first served. Nobody waits for a client: what is said is kept for it, and one that goes is answered no more.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import takewhile

from edgevlm.generate.answer import Answer, AnswerStream
from edgevlm.generate.chat import put
from edgevlm.generate.loop import Pipeline
from edgevlm.serve.contract import Asked
from edgevlm.serve.metrics import Metrics
from edgevlm.serve.refusals import Refusal
from edgevlm.serve.said import Chain, SaidBefore


class Begun:
    """The question was understood: what follows are pieces and the answer."""


Event = Begun | str | Answer | Exception
BEGUN = Begun()


class Job:
    """One question on its way. Made within the event loop that waits for its events."""

    def __init__(self, asked: Asked) -> None:
        self.asked, self.started = asked, time.perf_counter()
        self.cancelled = threading.Event()
        self._loop, self._events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        self._stream: AnswerStream | None = None

    async def next(self) -> Event:
        """The next thing that happens; an answer or an exception is the last."""
        return await self._events.get()

    def cancel(self) -> None:
        """End the answer after the call of the engine that is under way. From any thread, and more than once."""
        self.cancelled.set()
        if (stream := self._stream) is not None:
            stream.cancel()

    def run(self, pipeline: Pipeline, said: SaidBefore, metrics: Metrics) -> Answer | None:
        """Answer it, in a session's thread; None where there is no whole answer."""
        try:
            if self.cancelled.is_set():
                raise gone()
            conversation = said.restore(self.asked.conversation, self.asked.chain)
            stream = self._stream = put(pipeline, conversation, (), self.asked.options)
            if self.cancelled.is_set():  # between the two lines above
                stream.cancel()
            self.tell(BEGUN)
            for number, piece in enumerate(stream):
                if not number:
                    metrics.first_token.observe(time.perf_counter() - self.started)
                self.tell(piece)
            answer = stream.answer
            metrics.answered(answer)
            if answer.finish_reason != "cancelled":
                said.note(self.asked.chain, pipeline.prompter, answer)
        except Exception as error:
            metrics.failed()
            self.tell(error)
            return None
        self.tell(answer)
        return answer

    def tell(self, event: Event) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self.cancelled.set()


class Sessions:
    """Several pipelines of one bundle."""

    def __init__(self, pipelines: Sequence[Pipeline], most: int, metrics: Metrics) -> None:
        """most: questions that may wait while every session answers."""
        self._metrics, self._most, self._lock = metrics, most, threading.Lock()
        self._said = SaidBefore()
        self._waiting: deque[Job] = deque()
        self._sessions = [_Session(self, pipeline) for pipeline in pipelines]
        self._free = list(self._sessions)
        self._stopping = False
        for session in self._sessions:
            session.thread.start()

    @property
    def full(self) -> bool:
        return not self._free and len(self._waiting) >= self._most

    def busy(self) -> Refusal:
        """For a question that there is no room for."""
        self._metrics.rejected.labels("queue_full").inc()
        wait = self._metrics.mean_seconds() * (1 + len(self._waiting) / len(self._sessions))
        seconds = str(max(1, min(60, round(wait))))
        return Refusal(
            429,
            f"The server answers {len(self._sessions)} and keeps {self._most} waiting: ask again in {seconds} seconds.",
            code="queue_full",
            headers={"Retry-After": seconds},
        )

    def submit(self, asked: Asked) -> Job:
        """Raises Refusal where the queue is full. Called within the event loop."""
        job = Job(asked)
        with self._lock:
            if self._stopping:
                raise stopping()
            if self._free:
                session = max(self._free, key=lambda free: free.shared(job.asked.chain))
                self._free.remove(session)
                session.inbox.put(job)
            elif len(self._waiting) < self._most:
                self._waiting.append(job)
            else:
                raise self.busy()
            self._count()
        return job

    def cancel(self, job: Job) -> None:
        """The client is gone: whoever computes stops, and a place in the queue is free at once."""
        job.cancel()
        with self._lock:
            if job in self._waiting:
                self._waiting.remove(job)
                self._count()
                self._metrics.answers.labels("cancelled").inc()
                job.tell(gone())

    def stop(self) -> None:
        """Take no more questions, and send those home that wait. Those under way go on."""
        with self._lock:
            self._stopping = True
            waiting, self._waiting = list(self._waiting), deque()
            self._count()
        for job in waiting:
            job.tell(stopping())

    def end(self) -> None:
        """Cancel what is under way."""
        for session in self._sessions:
            if (job := session.job) is not None:
                job.cancel()

    def close(self, seconds: float = 30.0) -> None:
        """Free the engines, once each session's last call of it has returned."""
        self.stop()
        self.end()
        for session in self._sessions:
            session.inbox.put(None)
        deadline = time.monotonic() + seconds
        for session in self._sessions:
            session.thread.join(max(0.0, deadline - time.monotonic()))
            if not session.thread.is_alive():
                session.pipeline.runtime.close()

    def work(self, session: _Session) -> None:
        """What a session's thread does."""
        while (job := session.inbox.get()) is not None:
            while job is not None:
                session.job = job
                answer = job.run(session.pipeline, self._said, self._metrics)
                session.held = job.asked.chain if answer is not None else ()
                job = session.job = self._next(session)

    def _next(self, session: _Session) -> Job | None:
        with self._lock:
            job = self._waiting.popleft() if self._waiting else None
            if job is None:
                self._free.append(session)
            self._count()
        return job

    def _count(self) -> None:
        self._metrics.waiting.set(len(self._waiting))
        self._metrics.busy.set(len(self._sessions) - len(self._free))


class _Session:
    """A pipeline, its thread, and what its decoder holds."""

    def __init__(self, sessions: Sessions, pipeline: Pipeline) -> None:
        self.pipeline, self.held, self.job = pipeline, Chain(), _NONE
        self.inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=sessions.work, args=(self,), name="edgevlm-session", daemon=True)

    def shared(self, chain: Chain) -> int:
        """Messages at the beginning that the decoder has read."""
        return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(self.held, chain, strict=False))))


_NONE: Job | None = None


def stopping() -> Refusal:
    return Refusal(503, "The server is stopping: ask again later.", code="stopping", headers={"Retry-After": "5"})


def gone() -> Refusal:
    return Refusal(499, "The client closed the connection.", code="client_closed")
