"""Ask a bundle from Python: `edgevlm.load("bundle").answer("What is this?", ["photo.jpg"])`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.bundle.hub import resolve_bundle
from edgevlm.bundle.manifest import open_bundle
from edgevlm.errors import Closed, EdgeVLMError
from edgevlm.generate.answer import Answer, AnswerStream
from edgevlm.generate.async_stream import AsyncAnswerStream
from edgevlm.generate.chat import Chat, put, warm_up
from edgevlm.generate.given import Pictures
from edgevlm.generate.loop import Pipeline
from edgevlm.generate.opening import open_pipeline
from edgevlm.generate.pictures import LIMIT
from edgevlm.generate.pool import check_workers, in_order, open_sessions
from edgevlm.generate.sampling import GenerateOptions
from edgevlm.inputs.render import Conversation
from edgevlm.io.options import check_types

TRIMS = ("caches", "sessions")


@dataclass(frozen=True)
class LoadOptions:
    """See `load`. Raises EdgeVLMError for a value of another type."""

    runtime: str | None = None
    threads: int | None = None
    device: str = "cpu"
    verify: bool = False
    reuse: bool = True
    cache_bytes: int = LIMIT
    cache_folder: Path | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class BundleInfo:
    name: str  # of the model
    source: str  # Hub id, folder name or "default"
    runtime: str  # "onnxruntime", or "onnxruntime+llama.cpp" for two engines
    device: str  # in words: "CPU (2 threads)"
    context_length: int  # positions, prompt and answer together
    bytes: int  # of the bundle's files
    gate_passed: bool | None  # whether the export passed its own test; None where it ran none


@dataclass(frozen=True, eq=False)
class Request:
    """A question of `Model.batch`."""

    question: Conversation
    pictures: Pictures = ()
    options: GenerateOptions | None = None


def load(bundle: str | Path, runtime: str | None = None, threads: int | None = None, **options: Any) -> Model:
    """Open a bundle for asking: a folder, or "owner/name" on the Hub, which is fetched into the Hub's cache.

    runtime: "onnxruntime", "llama.cpp", "coreml", "eager", or two of them, "encoder+decoder"; None is the first whose
    files the bundle has. threads: worker threads on the CPU; None leaves the number to the engine.
    device: "cpu", "gpu", "npu", or a provider of onnxruntime. verify: hash every file of the bundle first, the large
    ones too, whose sizes alone are compared otherwise. reuse: keep what a question shares with the one before.
    cache_bytes: of memory for pictures that were asked about, 64 MiB where nothing is said; 0 keeps none.
    cache_folder: where what pictures cost is kept on disk, too, for later processes; up to 1 GiB.
    revision: branch, tag or commit of a bundle on the Hub.

    Raises EdgeVLMError: BundleError for what is no whole bundle, Unsupported and RuntimeFailed for an engine that
    cannot be used.
    """
    try:
        chosen = LoadOptions(runtime, threads, **options)
    except TypeError as error:
        raise EdgeVLMError(f"{str(error).partition('() ')[2] or error}: see edgevlm.load for what it takes.") from None
    return Model(bundle, chosen)


class Model:
    """A bundle that answers. A context manager; any thread may use it, and one answer is computed at a time.

    question: text, or messages as `Pipeline.ask` takes them. pictures: one picture or a list; each a path, the bytes of
    an image file, a data: URL, a Pillow image, or a uint8 array: RGB (H, W, 3), RGBA (H, W, 4) or grey (H, W).
    """

    def __init__(self, bundle: str | Path, options: LoadOptions) -> None:
        self._options = options
        self._bundle = open_bundle(resolve_bundle(bundle, options.revision), "hash" if options.verify else "size")
        self._lock = threading.RLock()
        self._closed = False
        self._opened: Pipeline | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._pipeline()

    @property
    def info(self) -> BundleInfo:
        manifest, runtime = self._bundle.manifest, self._pipeline().runtime
        return BundleInfo(
            manifest.model.name,
            manifest.model.source,
            runtime.name,
            runtime.device,
            manifest.spec.decoder.context_length,
            sum(info.size for info in manifest.files.values()),
            None if manifest.gate is None else bool(manifest.gate.get("passed")),
        )

    def ask(
        self, question: Conversation, pictures: Pictures = (), options: GenerateOptions | None = None
    ) -> AnswerStream:
        """Start an answer: iterate the stream for its pieces, `stream.answer` is the whole, `stream.cancel()` ends it.

        options: an AskOptions. Raises EdgeVLMError for a bad question or picture, and ContextFull for too long a
        prompt, before the engine has any work.
        """
        return put(self._pipeline(), question, pictures, options)

    def answer(self, question: Conversation, pictures: Pictures = (), options: GenerateOptions | None = None) -> Answer:
        """As `ask`, run to the end."""
        return self.ask(question, pictures, options).answer

    def aask(
        self, question: Conversation, pictures: Pictures = (), options: GenerateOptions | None = None
    ) -> AsyncAnswerStream:
        """As `ask` for asyncio: `async for piece in model.aask(...)`. One thread of the model answers in order."""
        with self._lock:
            self._pipeline()  # a closed model says so here
            self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="edgevlm")
            return AsyncAnswerStream(lambda: self.ask(question, pictures, options), self._pool)

    def chat(self, system: str | None = None) -> Chat:
        """A conversation, in which a question reads only what is new."""
        return Chat(self._pipeline, system)

    def batch(
        self, requests: Iterable[Request], options: GenerateOptions | None = None, workers: int = 1
    ) -> Iterator[Answer | EdgeVLMError]:
        """An item for each request, in order. An error is an item, too, and ends nothing.

        options: of requests without their own. workers: with more than one, as many sessions on the same files answer
        beside each other, which share the cores (or have `threads` each, if that was given) and close at the end; some
        requests are then taken ahead of the answers that were read.
        """
        check_workers(workers)
        return self._batch(requests, options, workers)

    def _batch(
        self, requests: Iterable[Request], options: GenerateOptions | None, workers: int
    ) -> Iterator[Answer | EdgeVLMError]:
        if workers == 1:
            for request in requests:
                yield _item(self.answer, request, options)
            return
        self._pipeline()  # a closed model says so here
        own = self._options
        with open_sessions(
            self._bundle, workers, own.runtime, own.device, own.threads,
            reuse=own.reuse, cache_bytes=own.cache_bytes, cache_folder=own.cache_folder,
        ) as sessions:  # fmt: skip
            yield from in_order(requests, sessions, lambda session, request: _item(session.answer, request, options))

    def warm_up(self) -> None:
        """Answer a question about a blank picture, so that the first real one finds everything in memory."""
        warm_up(self._pipeline())

    def trim(self, what: str = "caches") -> None:
        """Give memory back. "caches": pictures and their features. "sessions": the engine with its weights, too, which
        the next question opens again; an answer that is under way fails."""
        if what not in TRIMS:
            raise EdgeVLMError(f"{what!r} cannot be trimmed: choose one of {', '.join(TRIMS)}.")
        with self._lock:
            if self._opened is not None:
                self._opened.pictures.clear()
            if what == "sessions":
                self._release()

    def close(self) -> None:
        """Free the engine, after the call that is under way in another thread. Calling it twice is harmless."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
            self._release()
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _release(self) -> None:
        pipeline, self._opened = self._opened, None
        if pipeline is not None:
            pipeline.runtime.close()

    def _pipeline(self) -> Pipeline:
        """What answers, opened again after `trim`."""
        with self._lock:
            if self._closed:
                raise Closed("The model is closed: load it again with edgevlm.load.")
            if self._opened is None:
                options = self._options
                self._opened = open_pipeline(
                    self._bundle, options.runtime, options.device, options.threads,
                    reuse=options.reuse, cache_bytes=options.cache_bytes, cache_folder=options.cache_folder,
                )  # fmt: skip
            return self._opened


def _item(answer: Callable[..., Answer], request: Request, options: GenerateOptions | None) -> Answer | EdgeVLMError:
    """The answer of a request of `Model.batch`, or its error."""
    try:
        if not isinstance(request, Request):
            raise EdgeVLMError(f"A request is of type {type(request).__name__}: give edgevlm.Request.")
        return answer(request.question, request.pictures, request.options or options)
    except Closed:
        raise
    except EdgeVLMError as error:
        return error
