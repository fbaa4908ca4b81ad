"""Several sessions on one bundle, each in a thread of its own, whose answers come in the order of the questions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from edgevlm.bundle.manifest import Bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.generate.answer import Answer, AnswerStream
from edgevlm.generate.chat import put
from edgevlm.generate.given import Pictures
from edgevlm.generate.loop import Pipeline
from edgevlm.generate.opening import open_pipelines
from edgevlm.generate.pictures import LIMIT
from edgevlm.generate.sampling import GenerateOptions
from edgevlm.inputs.render import Conversation
from edgevlm.io.options import shown

AHEAD = 4  # questions per session that are begun before the oldest answer is read
MOST = 256  # sessions
T = TypeVar("T")
R = TypeVar("R")


class Session:
    """A pipeline that one thread asks, and any other may stop."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._stream: AnswerStream | None = None
        self._stopped = False

    def answer(self, question: Conversation, pictures: Pictures, options: GenerateOptions | None) -> Answer:
        self._stream = stream = put(self.pipeline, question, pictures, options)
        if self._stopped:
            stream.cancel()
        return stream.answer

    def stop(self) -> None:
        """End the answer that is under way, and those to come, after a call of the engine."""
        self._stopped = True
        if self._stream is not None:
            self._stream.cancel()


def check_workers(workers: int) -> None:
    if type(workers) is not int or not 1 <= workers <= MOST:
        raise EdgeVLMError(f"workers is {shown(workers)}: give a whole number from 1 to {MOST}.")


@contextmanager
def open_sessions(
    bundle: Bundle,
    workers: int,
    runtime: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    *,
    reuse: bool = True,
    cache_bytes: int = LIMIT,
    cache_folder: Path | str | None = None,
) -> Iterator[list[Session]]:
    """`workers` sessions on the same files, within the block; the rest is as `open_pipelines` takes it."""
    pipelines = open_pipelines(
        bundle, workers, runtime, device, threads, reuse=reuse, cache_bytes=cache_bytes, cache_folder=cache_folder
    )
    try:
        yield [Session(pipeline) for pipeline in pipelines]
    finally:
        for pipeline in pipelines:
            pipeline.runtime.close()


def in_order(
    items: Iterable[T], sessions: Sequence[Session], work: Callable[[Session, T], R]
) -> Generator[R, None, None]:
    """`work(session, item)` for each item, in the order of the items, by threads that have a session each.

    Lazy: `AHEAD` items per session are taken before the oldest result is read. Where the iteration ends early, the
    sessions are stopped. What `work` raises is raised in its place, and ends the iteration.
    """
    free: SimpleQueue[Session] = SimpleQueue()
    for session in sessions:
        free.put(session)

    def run(item: T) -> R:
        session = free.get()
        try:
            return work(session, item)
        finally:
            free.put(session)

    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(len(sessions), thread_name_prefix="edgevlm")
    try:
        for item in items:
            waiting.append(pool.submit(run, item))
            if len(waiting) == AHEAD * len(sessions):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for session in sessions:
            session.stop()
        pool.shutdown(cancel_futures=True)
