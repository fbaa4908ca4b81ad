"""The one loop: pictures and a question in, text out as it comes, with the time of each stage."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from edgevlm.errors import EdgeVLMError
from edgevlm.generate.sampling import GenerateOptions, Sampler
from edgevlm.inputs.decode import Source, decode_image
from edgevlm.inputs.layout import Layout, merge
from edgevlm.inputs.preprocess import cut_views, plan, size_of
from edgevlm.inputs.prompt import Conversation, Views
from edgevlm.inputs.spec import ImageSpec
from edgevlm.runtimes.base import Runtime
from edgevlm.types import F32, U8, Ids

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

__all__ = ["Answer", "AnswerStream", "GenerateOptions", "Pipeline", "Prompt", "Timings"]


@dataclass
class Timings:
    """Seconds and amount of work of each stage. The consumer's own time between pieces is not in them."""

    preprocess: float = 0.0  # decode, resize and cut the pictures, build the prompt
    encode: float = 0.0  # views to image features
    prefill: float = 0.0  # prompt to the logits of the first token
    decode: float = 0.0  # the answer's tokens after the first
    image_tokens: int = 0
    prompt_tokens: int = 0  # image tokens included
    answer_tokens: int = 0
    peak_memory: int | None = None  # bytes, the process's largest resident set so far; None where unknown

    @property
    def tokens_per_second(self) -> float:
        """Speed of decode; the first token comes out of prefill and does not count. 0 for one token."""
        return (self.answer_tokens - 1) / self.decode if self.decode > 0 else 0.0


@dataclass(frozen=True)
class Answer:
    text: str
    ids: tuple[int, ...]  # with the stop token where there was one, as transformers' generate gives them
    timings: Timings
    finish_reason: str  # "stop": the model ended its answer; "length": max_tokens or the context length did


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prepared question: everything that is computed before the engine starts."""

    ids: Ids  # (S,)
    layout: Layout  # where the views' tokens lie
    views: list[U8]  # of all pictures in order, (H, W, 3) each
    max_tokens: int  # what the options ask for, cut to what the context length leaves

    @property
    def image_tokens(self) -> int:
        return sum(span.tokens for span in self.layout.spans)


class AnswerStream:
    """Iterate for the text's pieces as they come; `answer` then holds the whole."""

    def __init__(self, run: Generator[str, None, Answer]) -> None:
        self._run = run
        self._answer: Answer | None = None

    def __iter__(self) -> Iterator[str]:
        if self._answer is None:
            self._answer = yield from self._run

    @property
    def answer(self) -> Answer:
        """The complete answer; runs through what was not iterated yet."""
        for _ in self:
            pass
        assert self._answer is not None, "the stream was closed before its end"
        return self._answer


class Pipeline:
    """A bundle on a runtime. One question at a time; each starts a new conversation."""

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        self.bundle, self.runtime = bundle, runtime
        self.prompter = bundle.prompter()
        self._turn = 0

    def ask(
        self,
        images: Sequence[Source | U8],
        question: Conversation,
        options: GenerateOptions | None = None,
        *,
        max_tiles: int | None = None,
    ) -> AnswerStream:
        """Start an answer; the engine works while the stream is iterated.

        images: paths, bytes of image files, Pillow images or RGB uint8 arrays (H, W, 3); none is fine.
        question: text, which comes after the images, or chat messages with one image item per image.
        max_tiles: the most tiles a picture may take; None is the bundle's own rule.

        Raises EdgeVLMError here, before any work of the engine, for a bad picture or conversation, and for a
        prompt that leaves no room for an answer.
        """
        options = options or GenerateOptions()
        start = time.perf_counter()
        prompt = self.prepare(images, question, options.max_tokens, max_tiles=max_tiles)
        timings = Timings(
            preprocess=time.perf_counter() - start,
            image_tokens=prompt.image_tokens,
            prompt_tokens=len(prompt.ids),
        )
        self._turn += 1
        return AnswerStream(self._run(prompt, options, timings, self._turn))

    def answer(
        self,
        images: Sequence[Source | U8],
        question: Conversation,
        options: GenerateOptions | None = None,
        *,
        max_tiles: int | None = None,
    ) -> Answer:
        """As `ask`, run to the end."""
        return self.ask(images, question, options, max_tiles=max_tiles).answer

    def prepare(
        self,
        images: Sequence[Source | U8],
        question: Conversation,
        max_tokens: int = 1,
        *,
        max_tiles: int | None = None,
    ) -> Prompt:
        """Pictures and question to views and token ids, refused if they do not fit the context."""
        if isinstance(images, str | bytes):
            raise EdgeVLMError("The pictures are a single path or file: give a list, such as ['photo.jpg'].")
        rule, limit = self.bundle.image_spec, self.bundle.manifest.spec.decoder.context_length
        placed: list[Views] = []
        views: list[U8] = []
        image_tokens = 0
        for source in images:
            picture = _open(source, rule)
            planned = plan(*size_of(picture), rule, max_tiles=max_tiles)
            placed.append(rule.view_tokens(planned))
            image_tokens += sum(rows * cols for _, rows, cols in placed[-1])
            # Once the pictures alone are too many, only their sizes still matter: a thousand of them must end
            # in the sentence below, not in exhausted memory.
            if image_tokens < limit:
                views += cut_views(picture, planned, rule)
        ids, layout = self.prompter.encode(question, placed)
        if len(ids) >= limit:
            raise EdgeVLMError(_too_long(len(ids), image_tokens, len(placed), max_tokens, limit))
        return Prompt(ids, layout, views, min(max_tokens, limit - len(ids)))

    def _run(
        self, prompt: Prompt, options: GenerateOptions, timings: Timings, turn: int
    ) -> Generator[str, None, Answer]:
        encoder, decoder = self.runtime.encoder, self.runtime.decoder
        start = time.perf_counter()
        features = encoder.encode(prompt.views)
        timings.encode, start = _lap(start)

        embeds = merge(decoder.embed(prompt.ids), prompt.layout, features)
        decoder.rewind(0)
        logits = decoder.forward(embeds, prompt.layout)
        sampler = Sampler(options, prompt.ids.tolist())
        token = _choose(sampler, logits, self.runtime)
        timings.prefill, _ = _lap(start)

        text, ids = self.prompter.stream(), [token]
        pieces: list[str] = []
        stops = () if options.ignore_stop else self.bundle.prompt_spec.stop_ids
        while True:
            stopped = token in stops
            piece = "" if stopped else text.push(token)
            if stopped or len(ids) == prompt.max_tokens:
                break
            if piece:
                pieces.append(piece)
                yield piece
            if turn != self._turn:
                raise EdgeVLMError(
                    "This answer was left for a later question, which took over the engine: a pipeline "
                    "answers one question at a time; open a second runtime for a second one."
                )
            start = time.perf_counter()
            token = _choose(sampler, decoder.step(token), self.runtime)
            timings.decode += time.perf_counter() - start
            ids.append(token)
        timings.answer_tokens = len(ids)
        timings.peak_memory = peak_memory()
        last = piece + text.finish()
        if last:
            pieces.append(last)
            yield last
        return Answer("".join(pieces), tuple(ids), timings, "stop" if stopped else "length")


def peak_memory() -> int | None:
    """Bytes of this process's largest resident set so far; None where the system does not report it (Windows).

    Not Linux's ru_maxrss: a process starts with its parent's there.
    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            peak = next((line for line in status if line.startswith("VmHWM:")), None)
        return int(peak.split()[1]) * 1024 if peak else None
    except OSError:
        pass
    if sys.platform != "darwin":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _lap(start: float) -> tuple[float, float]:
    now = time.perf_counter()
    return now - start, now


def _open(source: Source | U8, spec: ImageSpec) -> U8 | Image.Image:
    """The picture decoded."""
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or not source.size:
            raise EdgeVLMError(
                f"A picture is an array of {source.dtype} {source.shape}: give RGB uint8 (height, width, 3)."
            )
        return source
    if not isinstance(source, str | os.PathLike | bytes | Image.Image):
        raise EdgeVLMError(
            f"A picture is a {type(source).__name__}: give a path, the bytes of a file, a Pillow image or an array."
        )
    return decode_image(source, spec.background)


def _choose(sampler: Sampler, logits: F32, runtime: Runtime) -> int:
    if np.isnan(logits).any():
        raise EdgeVLMError(
            f"The engine {runtime.name} on {runtime.device} gave logits that are not numbers: check the "
            "bundle with `edgevlm verify`, or use --device cpu."
        )
    return sampler.choose(logits)


def _too_long(prompt: int, image: int, pictures: int, wanted: int, limit: int) -> str:
    if image:
        pictures_are = "1 picture" if pictures == 1 else f"{pictures} pictures"
        what = f"{image} of them from {pictures_are}"
        remedy = "allow fewer tiles per picture, give fewer pictures or a shorter question"
    else:
        what, remedy = "none of them from pictures", "ask a shorter question"
    return (
        f"The prompt takes {prompt} tokens ({what}) and up to {wanted} for the answer, but the model's "
        f"context holds {limit}: {remedy}."
    )
