"""The one loop: pictures and a question in, text out as it comes, with the time of each stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import replace
from functools import partial
from threading import Event

import numpy as np

from edgevlm.bundle.manifest import Bundle
from edgevlm.errors import EdgeVLMError, RuntimeFailed, Unsupported
from edgevlm.generate.answer import Answer, AnswerStream, Timings
from edgevlm.generate.constrain import LEAD, Form, Forms
from edgevlm.generate.drafter import LENGTHS, Drafter
from edgevlm.generate.given import Pictures
from edgevlm.generate.held import Held
from edgevlm.generate.lookup import Lookup, Trial
from edgevlm.generate.pictures import PictureCache
from edgevlm.generate.prompt import Prompt, prepare
from edgevlm.generate.reader import Reader
from edgevlm.generate.region import POSITIONS, Place, find_places, line_of
from edgevlm.generate.sampling import GenerateOptions, Sampler
from edgevlm.generate.stored_states import StoredStates
from edgevlm.inputs.grounding import Box, Point, find
from edgevlm.inputs.prompt import Prompter
from edgevlm.inputs.render import Conversation, messages_of
from edgevlm.io import limits
from edgevlm.io.processor import peak_memory
from edgevlm.runtimes.base import Decoder, DraftDecoder, Runtime, StateDecoder
from edgevlm.runtimes.region import RegionHead, open_region
from edgevlm.types import F32

__all__ = ["Answer", "AnswerStream", "GenerateOptions", "Pipeline", "Prompt", "Timings"]


class Pipeline:
    """A bundle on a runtime. Each question starts a new conversation, but what it shares with the last is not computed
    again: the prompt's beginning, and pictures.

    Any number of threads may ask; the engine computes one answer at a time, and the others wait for their turn.
    """

    def __init__(
        self,
        bundle: Bundle,
        runtime: Runtime,
        *,
        reuse: bool = True,
        prompter: Prompter | None = None,
        pictures: PictureCache | None = None,
        stored: StoredStates | None = None,
    ) -> None:
        """reuse: False reads every prompt whole, so that no answer depends on what was asked before, not even by how
        an engine rounds. prompter: the bundle's, where it was opened before.
        pictures: where pictures and their features are kept; None is a cache of its own.
        stored: the decoder's states behind pictures, kept on disk.

        Raises EdgeVLMError where bundle and runtime are something else, a path for one.
        """
        for value, kind, function in ((bundle, Bundle, "open_bundle"), (runtime, Runtime, "open_runtime")):
            if not isinstance(value, kind):
                raise EdgeVLMError(
                    f"A pipeline takes a {kind.__name__}, not a {type(value).__name__}: make it with {function}."
                )
        self.bundle, self.runtime = bundle, runtime
        self.prompter = bundle.prompter() if prompter is None else prompter
        self._forms = Forms(bundle, self.prompter)
        self.pictures = PictureCache() if pictures is None else pictures
        self._held = Held(runtime.decoder, bundle.manifest.spec.decoder, reuse, stored)
        self._trial: Trial | None = None  # of the first lookup on
        self._region: RegionHead | None = None  # read when it is first asked

    def ask(
        self,
        images: Pictures,
        question: Conversation,
        options: GenerateOptions | None = None,
        *,
        max_tiles: int | None = None,
        thinking: bool | None = None,
    ) -> AnswerStream:
        """Start an answer; the engine works while the stream is iterated.

        images: one picture or several, none is []. A picture is a path, the bytes of an image file, a data: URL, a
        Pillow image, or a uint8 array: RGB (H, W, 3), RGBA (H, W, 4) or grey (H, W). An array in OpenCV's order, BGR,
        is given as frame[:, :, ::-1].
        question: text, which comes after the images, or chat messages. Their image items without a picture of their
        own take `images` in order; {"type": "image", "image": PICTURE}, also with "path" or "url", and
        {"type": "image_url", "image_url": {"url": ADDRESS}} have their own. {"type": "video", "video": PATH}, with
        "fps" and "max_frames" where the model's own are not meant, is a video file.
        max_tiles: the most tiles a picture may take; None is the bundle's own rule.
        thinking: whether the model is to think before it answers, where it has a switch; None leaves that to it.

        Raises EdgeVLMError here, before any work of the engine, for a bad picture or conversation, for a prompt that
        leaves no room for an answer, and for a schema, choices or a regular expression that cannot be used.
        """
        options = GenerateOptions() if options is None else options
        if not isinstance(options, GenerateOptions):
            raise EdgeVLMError(f"The options are a {type(options).__name__}: give GenerateOptions(max_tokens=128).")
        start = time.perf_counter()
        prompt = self.prepare(images, question, options.max_tokens, max_tiles=max_tiles, thinking=thinking)
        if prompt.places is not None and (options.constrained or options.stop):
            raise EdgeVLMError("An answer in boxes or points is no text: leave out schema, choices, regex and stop.")
        form = self._forms.start(options, self.runtime.decoder, len(prompt.ids), thinking)
        timings = Timings(
            preprocess=time.perf_counter() - start,
            image_tokens=prompt.image_tokens,
            prompt_tokens=len(prompt.ids),
        )
        cancelled = Event()
        return AnswerStream(self._run(prompt, options, timings, form, cancelled), self.runtime.turn, cancelled)

    def answer(
        self,
        images: Pictures,
        question: Conversation,
        options: GenerateOptions | None = None,
        *,
        max_tiles: int | None = None,
        thinking: bool | None = None,
    ) -> Answer:
        """As `ask`, run to the end."""
        return self.ask(images, question, options, max_tiles=max_tiles, thinking=thinking).answer

    def prepare(
        self,
        images: Pictures,
        question: Conversation,
        max_tokens: int = 1,
        *,
        max_tiles: int | None = None,
        thinking: bool | None = None,
    ) -> Prompt:
        """Pictures and question to views and token ids, refused if they do not fit the context."""
        GenerateOptions(max_tokens)  # which checks it
        conversation, pictures, prompt = prepare(
            self.bundle, self.prompter, self.pictures, images, question, max_tokens, max_tiles, thinking
        )
        places, label = self._asked(conversation, pictures)
        return replace(prompt, places=places, label=label)

    def _run(
        self, prompt: Prompt, options: GenerateOptions, timings: Timings, form: Form | None, cancelled: Event
    ) -> Generator[str, None, Answer]:
        try:
            return (yield from self._tell(prompt, options, timings, form, cancelled))
        except GeneratorExit:  # where a piece was waited for: no call is half done
            raise
        except BaseException:
            self._held.forget()
            raise

    def _tell(
        self, prompt: Prompt, options: GenerateOptions, timings: Timings, form: Form | None, cancelled: Event
    ) -> Generator[str, None, Answer]:
        encoder, decoder, ids = self.runtime.encoder, self.runtime.decoder, list[int]()
        start = time.perf_counter()
        length = self._held.begin(prompt)
        known = prompt.views_before(length)
        features = self.pictures.features(encoder, prompt.views, prompt.keys, cancelled.is_set, known)
        timings.encode, start = _lap(start)
        if cancelled.is_set():
            return Answer("", (), timings, "cancelled")
        timings.reused_tokens = length
        logits = self._held.read(prompt, length, features, ids, cancelled.is_set)
        if logits is None:
            return Answer("", (), timings, "cancelled")
        if prompt.places is not None:
            timings.prefill, _ = _lap(start)
            return (yield from self._found(prompt, logits, options, timings, cancelled))
        sampler = Sampler(options, prompt.ids.tolist())
        choose = partial(_choose, sampler, self.runtime, form)
        stops = () if options.ignore_stop else self.bundle.prompt_spec.stop_ids
        token = choose(logits)
        timings.prefill, start = _lap(start)
        scores = form.scores(decoder, logits) if form else None
        timings.scoring, _ = _lap(start)
        lookup = self._lookup(prompt, options, stops, choose)
        tokens = lookup.after(token) if lookup else _steps(decoder, token, choose)

        text = Reader(self.prompter.stream(), options.stop, LEAD if form else None)
        ids.append(token)
        pieces: list[str] = []
        while True:
            stopped = token in stops
            piece = "" if stopped else text.push(token)
            stopped = stopped or text.stopped or (form is not None and form.constraint.done)
            if stopped or len(ids) == prompt.max_tokens or cancelled.is_set():
                break
            if piece:
                pieces.append(piece)
                yield piece
            if cancelled.is_set():
                piece = ""
                break
            start = time.perf_counter()
            token = next(tokens)
            timings.decode += time.perf_counter() - start
            ids.append(token)
        if lookup and text.stopped:  # within a draft
            decoder.rewind(len(prompt.ids) + len(ids) - 1)
        timings.answer_tokens = len(ids)
        timings.looked_up = lookup.looked_up if lookup else 0
        timings.peak_memory = peak_memory()
        if last := piece + text.finish():
            pieces.append(last)
            yield last
        boxes, points = self._places(ids, prompt)
        reason = "stop" if stopped else "length" if len(ids) == prompt.max_tokens else "cancelled"
        return Answer("".join(pieces), tuple(ids), timings, reason, boxes, points, scores)

    def _asked(self, conversation: Conversation, pictures: int) -> tuple[str | None, str]:
        """Which places the last message asks for, by its role, and of what."""
        role, content = messages_of(conversation, pictures)[-1]
        places = self.bundle.prompt_spec.chat.roles[role].places
        if places is None:
            return None, ""
        label = " ".join(str(item["text"]).strip() for item in content if item["type"] == "text").strip()
        if not label or pictures != 1:
            raise EdgeVLMError(f"The role '{role}' asks where something is: give one picture, and name the thing.")
        if not isinstance(self.runtime.decoder, StateDecoder):
            raise Unsupported(
                f"The role '{role}' asks for {places}, which this model reads from its decoder's states, and "
                f"{self.runtime.decoder.name} does not give them: use another runtime."
            )
        return places, label[: limits.LABEL]

    def _found(
        self, prompt: Prompt, logits: F32, options: GenerateOptions, timings: Timings, cancelled: Event
    ) -> Generator[str, None, Answer]:
        """The answer out of the region head: its places, and a line of text for each."""
        decoder, kind = self.runtime.decoder, prompt.places
        assert isinstance(decoder, StateDecoder) and kind is not None
        start = time.perf_counter()
        self._region = self._region or open_region(self.bundle)
        found = find_places(
            self._region, _checked(logits, self.runtime), decoder.hidden_state,
            lambda row: _checked(decoder.forward(row), self.runtime),
            kind=kind, label=prompt.label, picture=prompt.frames[0].picture, most=prompt.max_tokens,
            endless=options.ignore_stop,
        )  # fmt: skip
        places, text = list[Place](), ""
        while True:
            if cancelled.is_set():
                reason = "cancelled"
                break
            try:
                place = next(found)
            except StopIteration as end:
                reason = str(end.value)
                break
            finally:
                timings.decode += time.perf_counter() - start
            piece = "\n" * bool(text) + line_of(place)
            places, text = [*places, place], text + piece
            yield piece
            start = time.perf_counter()
        timings.answer_tokens = 1 + POSITIONS[kind] * len(places)
        timings.peak_memory = peak_memory()
        boxes = tuple(place for place in places if isinstance(place, Box))
        points = tuple(place for place in places if isinstance(place, Point))
        return Answer(text, (), timings, reason, boxes, points)

    def _lookup(
        self, prompt: Prompt, options: GenerateOptions, stops: Collection[int], choose: Callable[[F32], int]
    ) -> Lookup | None:
        """None where an answer is not simply the most likely tokens, or the engine takes one token a call."""
        decoder = self.runtime.decoder
        greedy = options.temperature == 0.0 and options.repetition_penalty == 1.0 and not options.constrained
        if options.lookup is False or not greedy or not isinstance(decoder, DraftDecoder):
            return None
        if decoder.most_steps <= max(LENGTHS):
            return None
        self._trial = self._trial or Trial(rounds=decoder.rounds)
        drafter = Drafter(prompt.ids.tolist(), never={*stops, self.prompter.image_token_id})
        return Lookup(decoder, drafter, self._trial, choose, prompt.max_tokens - 1, force=options.lookup is True)

    def _places(self, ids: list[int], prompt: Prompt) -> tuple[tuple[Box, ...], tuple[Point, ...]]:
        grounding = self.bundle.prompt_spec.grounding
        if grounding is None or len(prompt.frames) != 1:
            return (), ()
        return find(self.prompter.decode(ids, special=True), grounding, prompt.frames[0])


def _lap(start: float) -> tuple[float, float]:
    now = time.perf_counter()
    return now - start, now


def _steps(decoder: Decoder, token: int, choose: Callable[[F32], int]) -> Iterator[int]:
    while True:
        token = choose(decoder.step(token))
        yield token


def _choose(sampler: Sampler, runtime: Runtime, form: Form | None, logits: F32) -> int:
    logits = _checked(logits, runtime)
    if form is None:
        return sampler.choose(logits)
    token = sampler.choose(form.constraint.mask(logits))
    form.constraint.take(token)
    return token


def _checked(logits: F32, runtime: Runtime) -> F32:
    if np.isnan(logits).any():
        raise RuntimeFailed(
            f"The engine {runtime.name} on {runtime.device} gave logits that are not numbers: check the "
            "bundle with `edgevlm verify`, or use --device cpu."
        )
    return logits
