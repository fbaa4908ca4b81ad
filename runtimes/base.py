"""What every engine offers: an encoder of pictures and a decoder of text, each by itself. Nothing else is called.

Image features are plain arrays, so that any engine's encoder goes with any engine's decoder: a pair of two engines is a
choice, not a class.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy.typing as npt

from edgevlm.errors import Closed, ContextFull, EdgeVLMError, RuntimeFailed
from edgevlm.inputs.layout import Layout
from edgevlm.io.options import check_types
from edgevlm.models import spec
from edgevlm.types import F32, I64, U8

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

STORAGES = ("fp16", "fp32")
MAX_THREADS = 256


class Stopped(Exception):
    """A prompt was left between two calls of its reading: nobody wants it any more. What was read is held."""


def never() -> bool:
    return False


def nothing() -> None:
    pass


class Encoder(Protocol):
    """The vision half of a bundle on one engine: tower and projector. D decoder hidden size."""

    name: str  # "onnxruntime", "eager", "llama.cpp", "coreml"
    device: str  # what it really runs on, in words: "CPU (2 threads)"

    def encode(self, views: Sequence[U8]) -> list[F32]:
        """RGB views, each uint8 (H, W, 3), to each one's image features (tokens, D). Normalizing is part of it."""

    def close(self) -> None:
        """Free the engine. Calling it twice is harmless."""


class Decoder(Protocol):
    """The text half on one engine, holding one conversation's states. S positions, V vocabulary size."""

    name: str
    device: str
    layout: Layout  # the last that was given; an empty one of a new conversation

    def embed(self, ids: I64) -> F32:
        """Token ids (S,) to embeddings (S, D)."""

    def forward(self, embeds: F32, layout: Layout | None = None, stopped: Callable[[], bool] = never) -> F32:
        """Append S positions (S, D); logits (V,) after the last one.

        layout: of the whole prompt, given with the first part of it that is read; None goes on under the one before.
        stopped: where that takes several calls of the engine, asked between them. Raises Stopped where it says so.
        """

    def step(self, token: int) -> F32:
        """Append one token; logits (V,) after it."""

    @property
    def position(self) -> int:
        """Positions that are held."""

    def rewind(self, length: int) -> None:
        """Forget every position from `length` on; 0 starts a new conversation.

        Raises EdgeVLMError for any other where the model's states are overwritten (`rewound`).
        """

    def close(self) -> None:
        """Free the engine. Calling it twice is harmless."""


@runtime_checkable
class BatchEncoder(Protocol):
    """An encoder whose graph takes several views of one size in one call."""

    def encode_together(self, views: Sequence[U8]) -> list[F32]:
        """As `encode`, in one call, and where the graph takes a mask beside a masked view, which it drops."""


@runtime_checkable
class BatchDecoder(Protocol):
    """A decoder whose graph takes several prompts, padded on the right, in one call."""

    def forward_padded(self, prompts: Sequence[F32]) -> F32:
        """Logits (B, V) after each of several prompts (S, D); nothing is kept."""


@runtime_checkable
class DraftDecoder(Decoder, Protocol):
    """A decoder that gives logits after each of several tokens of one call, and can forget those that were wrong.

    rounds: it rounds activations to 8 bits, so that results which differ by a last bit may differ by a step of a code.
    """

    rounds: bool

    @property
    def most_steps(self) -> int:
        """Tokens that one call takes at most; 0 for a model whose states cannot go back."""

    def steps(self, tokens: Sequence[int]) -> F32:
        """Append tokens (S,); logits (S, V) after each: as a step for each, up to how the engine rounds."""


@runtime_checkable
class StateDecoder(Decoder, Protocol):
    """A decoder that also gives what its last layer gave, for a head beside it."""

    def hidden_state(self) -> F32:
        """Of the last position that was appended: (D,), before the norm of the head. Of a model with such a head."""


@runtime_checkable
class ForkDecoder(Decoder, Protocol):
    """A decoder that can go back to where its overwritten states were copied."""

    def copied(self) -> dict[str, npt.NDArray[Any]]:
        """The overwritten states after the last position, by name."""

    def go_back(self, length: int, copied: Mapping[str, npt.NDArray[Any]]) -> None:
        """As `rewind`, to positions that are still held, after which `copied` was given."""


@runtime_checkable
class SavedDecoder(Decoder, Protocol):
    """A decoder whose states can be taken out and put into another process's."""

    def saved(self) -> dict[str, npt.NDArray[Any]]:
        """Every state by name, without its batch axis, with `position` positions where it grows."""

    def restore(self, length: int, layout: Layout, saved: Mapping[str, npt.NDArray[Any]]) -> None:
        """Hold the `length` positions of `layout`'s prompt after which `saved` was given."""


class Unfinished(Protocol):
    """An answer that is under way."""

    def finish(self) -> None:
        """Compute the rest, and keep it for whoever reads the answer."""


class Turn:
    """Whose answer a decoder's states belong to: one at a time, whatever threads ask.

    Call the engine with `lock` held, after `take`. An answer that is in the way is finished first, by the one who
    waits: so nobody waits for a reader that is slow or gone, and no answer is lost.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.closed = False
        self._holder: weakref.ref[Unfinished] | None = None  # an answer that nobody can read any more is dropped

    def take(self, answer: Unfinished) -> None:
        """Give the engine to `answer`. Raises EdgeVLMError where the runtime is closed."""
        if self.closed:
            raise Closed("The runtime is closed: open it again with open_runtime.")
        holder = self._holder() if self._holder else None
        if holder is not answer:
            if holder is not None:
                holder.finish()
            self._holder = weakref.ref(answer)


@dataclass(frozen=True)
class Runtime:
    """A bundle loaded for answering: an encoder and a decoder, of one engine or of two.

    Encoder and decoder themselves are for one thread; `turn` is what keeps answers apart.
    """

    encoder: Encoder
    decoder: Decoder
    turn: Turn = field(default_factory=Turn, repr=False, compare=False)  # dataclasses.replace keeps it

    @property
    def name(self) -> str:
        """ "onnxruntime", or "onnxruntime+llama.cpp" for two engines."""
        first, second = self.encoder.name, self.decoder.name
        return first if first == second else f"{first}+{second}"

    @property
    def device(self) -> str:
        first, second = self.encoder.device, self.decoder.device
        return first if first == second else f"{first} + {second}"

    def close(self) -> None:
        """Free both engines, after the call that is under way in another thread."""
        self.turn.closed = True  # first: an answer takes the lock again and again, and would go on to its end
        with self.turn.lock:
            self.encoder.close()
            self.decoder.close()


@dataclass(frozen=True)
class EngineOptions:
    """See `open_runtime`."""

    device: str = "cpu"
    threads: int | None = None
    portable: bool = False
    storage: str = "fp16"

    def __post_init__(self) -> None:
        check_types(self)
        threads = self.threads
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise EdgeVLMError(f"threads is {threads}: give a whole number from 1 to {MAX_THREADS}.")
        if self.storage not in STORAGES:
            raise EdgeVLMError(f"Storage '{self.storage}' does not exist: choose one of {', '.join(STORAGES)}.")


class Engine(Protocol):
    """What a module that knows one engine has."""

    def open_encoder(self, bundle: Bundle, options: EngineOptions) -> Encoder: ...
    def open_decoder(self, bundle: Bundle, options: EngineOptions) -> Decoder: ...
    def open_runtime(self, bundle: Bundle, options: EngineOptions, beside: Callable[[], object]) -> Runtime:
        """beside: called once, where the engine leaves a core free while it loads."""


def disagreement(what: str) -> RuntimeFailed:
    """A bundle's files belong to different models."""
    return RuntimeFailed(f"The bundle's graphs and its manifest disagree: {what}; export the bundle again.")


def rewound(d: spec.Decoder, held: int, length: int) -> int:
    """Positions that are left of `held` after a rewind to `length`.

    Raises EdgeVLMError where the decoder has overwritten what it knew there.
    """
    if 0 < length < held and d.replaces:
        raise EdgeVLMError(
            f"This model's states cannot go back from position {held} to {length}: they are overwritten at each call; "
            "start anew with rewind(0) and give the whole prompt."
        )
    return max(0, min(held, length))


def context_error(total: int, limit: int) -> ContextFull:
    """A conversation does not fit what a decoder holds."""
    sentence = f"The conversation would take {total} positions and the model's context holds {limit}: "
    return ContextFull(sentence + "start a new one, or ask for less.", total, limit)
