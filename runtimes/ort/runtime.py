"""The onnx/ folder of a bundle on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevlm.bundle.manifest import target_of
from edgevlm.bundle.targets import OnnxTarget
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.layout import Layout, next_part
from edgevlm.inputs.preprocess import normalize, normalize_all
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io.processor import usable_cores
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import Decoder
from edgevlm.runtimes.base import EngineOptions, Runtime, Stopped, never, nothing, rewound
from edgevlm.runtimes.ort.check import check_file, check_signature
from edgevlm.runtimes.ort.products import signed_saturates
from edgevlm.runtimes.ort.session import Graph, find_providers, import_onnxruntime, open_session
from edgevlm.runtimes.ort.states import (
    MOST_STEPS,
    Cache,
    PassedCache,
    SharedCache,
    position_feeds,
    tile_feeds,
    vision_feeds,
    which_session,
)
from edgevlm.runtimes.ort.versions import check_version
from edgevlm.types import F32, I64, U8

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

NAME = "onnxruntime"
ENCODER, EMBED = "vision_encoder", "embed_tokens"
# Positions of a prompt in one call on a CPU. A call's scores of all heads are held at once and those of later keys are
# computed, too: in parts they stay in the cache, and half of them are never made.
PROMPT_PART = 256


def open_runtime(bundle: Bundle, options: EngineOptions, beside: Callable[[], object] = nothing) -> Runtime:
    """Three or four sessions, batch 1."""
    graphs = _Graphs(bundle, options)
    encoder, *rest = graphs.load(ENCODER, *graphs.decoders, beside=beside)
    return Runtime(_encoder(bundle, graphs, encoder), _decoder(bundle, graphs, rest))


def open_encoder(bundle: Bundle, options: EngineOptions) -> OrtEncoder:
    graphs = _Graphs(bundle, options)
    return _encoder(bundle, graphs, *graphs.load(ENCODER))


def open_decoder(bundle: Bundle, options: EngineOptions) -> OrtDecoder:
    graphs = _Graphs(bundle, options)
    return _decoder(bundle, graphs, graphs.load(*graphs.decoders))


class _Graphs:
    """A bundle's ONNX files, and how sessions on them are made."""

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        graphs = target_of(bundle, OnnxTarget).graphs
        self.ort, self.bundle, self.threads = import_onnxruntime(), bundle, options.threads
        self._providers = find_providers(self.ort, options.device)
        self._relative = {name: graph.portable if options.portable else graph.file for name, graph in graphs.items()}
        self.files = {name: bundle.path(file) for name, file in self._relative.items()}
        self.portable = options.portable
        self.decoders = [EMBED, "decoder", *(["decoder_prefill"] if "decoder_prefill" in self.files else [])]
        self.shared = "decoder" in graphs and graphs["decoder"].shared_kv and not options.portable
        # Standard operators multiply in float32.
        self._unsigned = not options.portable and signed_saturates(self.ort)
        count = (
            "one thread per core" if self.threads is None else f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        )
        self.on_cpu = options.device == "cpu"
        self.device = f"CPU ({count})" if self.on_cpu else f"{self._providers[0][0]}, CPU for what it lacks"

    def load(self, *names: str, beside: Callable[[], object] = nothing) -> list[Graph]:
        """Beside each other: a session keeps one core busy while it arranges weights for the kernels."""
        with ThreadPoolExecutor(min(len(names), self.threads or usable_cores())) as pool:
            graphs = pool.map(self._load, names)
            last = pool.submit(beside)  # behind the others: it may keep Python to itself, which they need to begin
            found = list(graphs)
            last.result()
            return found

    def _load(self, graph: str) -> Graph:
        if graph not in self.files:
            raise EdgeVLMError(f"The bundle '{self.bundle.folder}' has no graph '{graph}': export it again.")
        if graph == "decoder":
            check_version(self.ort, self.bundle.manifest.spec.decoder, self.portable)
        check_file(self.bundle, self._relative[graph])
        path = self.files[graph]
        # Looking up rows needs no pool; an idle one would spin beside the decoder's after every token.
        threads = 1 if graph == EMBED else self.threads
        session = open_session(self.ort, path, self._providers, threads, self._unsigned)
        check_signature(session, self.bundle, graph, self.portable)
        return Graph(session, path)


def _encoder(bundle: Bundle, graphs: _Graphs, session: Graph) -> OrtEncoder:
    return OrtEncoder(session, bundle.manifest.spec, bundle.image_spec, graphs.device)


def _decoder(bundle: Bundle, graphs: _Graphs, sessions: list[Graph]) -> OrtDecoder:
    d = bundle.manifest.spec.decoder
    embed, *decoders = sessions
    hidden = bundle.manifest.spec.region is not None
    cache = (SharedCache if graphs.shared else PassedCache)(graphs.ort, d, decoders, hidden)
    rounds = bundle.manifest.recipe["decoder"]["kind"] in ("int8", "int4") and not graphs.portable
    rounds = rounds or d.cache == "int8"
    part = PROMPT_PART if graphs.on_cpu else d.context_length
    return OrtDecoder(embed, decoders, cache, d, graphs.device, rounds, part)


class OrtEncoder:
    """`Encoder` on ONNX Runtime, and a `BatchEncoder` for towers of one picture size."""

    name = NAME

    def __init__(self, session: Any, spec: ModelSpec, image: ImageSpec, device: str) -> None:
        self._session, self._spec, self._image, self.device = session, spec, image, device

    def encode(self, views: Sequence[U8]) -> list[F32]:
        # One view per call: peak memory is one view's, and where activations are quantized per call their
        # range is one view's too, so a view's features do not depend on the views that it arrives with.
        assert self._session is not None, "the runtime is closed"
        feeds = (vision_feeds(self._spec, normalize(view, self._image)) for view in views)
        return [self._session.run(["image_features"], each)[0][0] for each in feeds]

    def encode_together(self, views: Sequence[U8]) -> list[F32]:
        feeds = tile_feeds(self._spec, normalize_all(views, self._image), padding=1)
        return list(self._session.run(["image_features"], feeds)[0])

    def close(self) -> None:
        self._session = None


class OrtDecoder:
    """`Decoder` and `BatchDecoder` on ONNX Runtime."""

    name = NAME

    def __init__(
        self, embed: Any, sessions: list[Any], cache: Cache, spec: Decoder, device: str, rounds: bool, part: int
    ) -> None:
        """sessions: the decoder, and behind it the prompt's own where there is one. part: most positions of a call."""
        self.rounds, self._part = rounds, part
        self._embed, self._decoders, self._spec, self.device = embed, sessions, spec, device
        self._cache: Cache | None = cache
        self.layout = Layout(0)

    def forward_padded(self, prompts: Sequence[F32]) -> F32:
        """Logits (B, V) after each of several prompts (S, D), padded on the right into one batch; no cache is kept."""
        longest = max(map(len, prompts))
        embeds = np.zeros((len(prompts), longest, self._spec.embed_width), np.float32)
        mask = np.zeros((len(prompts), longest), np.int64)
        for row, prompt in enumerate(prompts):
            embeds[row, : len(prompt)] = prompt
            mask[row, : len(prompt)] = 1
        assert self._cache is not None, "the runtime is closed"
        past = {f"past_key_values.{name}": empty for name, empty in self._cache.empty(len(prompts)).items()}
        session = self._decoders[which_session(self._decoders, longest)]
        feeds = {"inputs_embeds": embeds, "attention_mask": mask, **past}
        logits: F32 = session.run(["logits"], feeds)[0][:, -1]
        return logits

    def embed(self, ids: I64) -> F32:
        rows: F32 = self._embed.run(["inputs_embeds"], {"input_ids": ids[None]})[0][0]
        return rows

    def forward(self, embeds: F32, layout: Layout | None = None, stopped: Callable[[], bool] = never) -> F32:
        assert self._cache is not None, "the runtime is closed"
        if layout is not None:
            self.layout = layout
        first = start = self._cache.position
        stop = start + len(embeds)
        self._cache.make_room(stop)
        parts = max(1, -(-len(embeds) // self._part))
        most = -(-len(embeds) // parts)  # parts of one size: a short last one would cost as much as a longer
        while (end := next_part(self.layout, self._spec.mask, first, stop, most)) < stop:
            self._run(embeds[first - start : end - start], 1)
            first = end
            if stopped():
                raise Stopped
        last: F32 = self._run(embeds[first - start :], 1)[0]
        return last

    def hidden_state(self) -> F32:
        assert self._cache is not None, "the runtime is closed"
        last: F32 = self._cache.hidden[0, -1]
        return last

    def step(self, token: int) -> F32:
        return self.forward(self.embed(np.array([token], np.int64)))

    @property
    def most_steps(self) -> int:
        return 0 if self._spec.replaces else MOST_STEPS

    def steps(self, tokens: Sequence[int]) -> F32:
        return self._run(self.embed(np.array(tokens, np.int64)), len(tokens))

    def _run(self, embeds: F32, keep: int) -> F32:
        cache = self._cache
        assert cache is not None, "the runtime is closed"
        return cache.run(embeds, position_feeds(self._spec, self.layout, cache.position, len(embeds)), keep)

    @property
    def position(self) -> int:
        return self._cache.position if self._cache else 0

    def rewind(self, length: int) -> None:
        if self._cache:
            self._cache.position = rewound(self._spec, self._cache.position, length)
        if self.position == 0:
            self.layout = Layout(0)

    def copied(self) -> dict[str, npt.NDArray[Any]]:
        assert self._cache is not None, "the runtime is closed"
        return self._cache.held(("replace",))

    def go_back(self, length: int, copied: Mapping[str, npt.NDArray[Any]]) -> None:
        assert self._cache is not None, "the runtime is closed"
        self._cache.put(length, copied)

    def saved(self) -> dict[str, npt.NDArray[Any]]:
        assert self._cache is not None, "the runtime is closed"
        return self._cache.held(("append", "replace", "memory"))

    def restore(self, length: int, layout: Layout, saved: Mapping[str, npt.NDArray[Any]]) -> None:
        assert self._cache is not None, "the runtime is closed"
        self._cache.position = 0
        self._cache.put(length, saved)
        self.layout = layout

    def close(self) -> None:
        self._embed = self._cache = None
        self._decoders = []
