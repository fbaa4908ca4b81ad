"""The onnx/ folder of a bundle on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.layout import Layout
from edgevlm.runtimes.base import no_features
from edgevlm.runtimes.ort.products import signed_saturates
from edgevlm.runtimes.ort.session import find_providers, import_onnxruntime, open_session
from edgevlm.runtimes.ort.states import (
    Cache,
    PassedCache,
    SharedCache,
    empty_states,
    position_feeds,
    vision_feeds,
    which_session,
)
from edgevlm.types import F32, I64

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle


class OrtRuntime:
    """`Runtime` on ONNX Runtime: three or four sessions, batch 1.

    parts: "vision" loads the encoder alone, "text" everything else, for one half of a pair of engines.
    """

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Bundle,
        device: str = "cpu",
        threads: int | None = None,
        portable: bool = False,
        parts: str = "all",
    ) -> None:
        target = bundle.manifest.targets.get("onnx")
        if target is None:
            raise EdgeVLMError(
                f"The bundle '{bundle.folder}' holds no ONNX graphs: export it again with them, "
                f"`edgevlm export MODEL --target onnx -o {bundle.folder} --force`."
            )
        ort = import_onnxruntime()
        self._spec = bundle.manifest.spec
        providers = find_providers(ort, device)
        try:
            graphs = target["graphs"]
            key = "portable" if portable else "file"
            files = {graph: bundle.path(entry[key]) for graph, entry in graphs.items()}
            shared = bool(graphs["decoder"]["shared_kv"]) and not portable
        except (KeyError, TypeError, AttributeError):
            raise EdgeVLMError(
                f"The manifest of '{bundle.folder}' does not describe its ONNX graphs: export it again."
            ) from None

        unsigned = not portable and signed_saturates(ort)  # standard operators multiply in float32

        def load(graph: str, session_threads: int | None) -> Any:
            if graph not in files:
                raise EdgeVLMError(f"The bundle '{bundle.folder}' has no graph '{graph}': export it again.")
            return open_session(ort, files[graph], providers, session_threads, unsigned)

        self._layout = Layout(0)
        self._vision: Any = None
        self._embed: Any = None
        self._decoders: list[Any] = []
        self._cache: Cache | None = None
        if parts != "text":
            self._vision = load("vision_encoder", threads)
        if parts != "vision":
            # Looking up rows needs no pool; an idle one would spin beside the decoder's after every token.
            self._embed = load("embed_tokens", 1)
            self._decoders.append(load("decoder", threads))
            if "decoder_prefill" in files:
                self._decoders.append(load("decoder_prefill", threads))
            cache = SharedCache if shared else PassedCache
            self._cache = cache(ort, self._spec.decoder, self._decoders)
        count = "one thread per core" if threads is None else f"{threads} thread{'s' if threads > 1 else ''}"
        self.device = f"CPU ({count})" if device == "cpu" else f"{providers[0][0]}, CPU for what it lacks"

    def encode(self, pixels: F32) -> F32:
        if not len(pixels):
            return no_features(self._spec, pixels)
        # One view per call: peak memory is one view's, and where activations are quantized per call their
        # range is one view's too, so a view's features do not depend on the views that it arrives with.
        return np.concatenate(
            [self._vision.run(["image_features"], vision_feeds(self._spec, view))[0] for view in pixels]
        )

    def encode_together(self, pixels: F32) -> F32:
        """As `encode`, in one call and beside a masked tile, which the graph drops: what the gate holds it to."""
        shape = (1, len(pixels) + 1, *pixels.shape[1:])
        padded = np.zeros(shape, np.float32)
        padded[0, :-1] = pixels
        mask = np.ones((1, len(pixels) + 1, *pixels.shape[2:]), np.bool_)
        mask[0, -1] = False
        feeds = {"pixel_values": padded, "pixel_attention_mask": mask}
        features: F32 = self._vision.run(["image_features"], feeds)[0]
        return features

    def prefill_padded(self, prompts: Sequence[F32]) -> F32:
        """Logits (B, V) after each of several prompts (S, D), padded on the right into one batch; no cache is kept."""
        longest = max(map(len, prompts))
        embeds = np.zeros((len(prompts), longest, self._spec.decoder.hidden_size), np.float32)
        mask = np.zeros((len(prompts), longest), np.int64)
        for row, prompt in enumerate(prompts):
            embeds[row, : len(prompt)] = prompt
            mask[row, : len(prompt)] = 1
        past = {
            f"past_key_values.{name}": empty for name, empty in empty_states(self._spec.decoder, len(prompts)).items()
        }
        session = self._decoders[which_session(self._decoders, longest)]
        feeds = {"inputs_embeds": embeds, "attention_mask": mask, **past}
        logits: F32 = session.run(["logits"], feeds)[0][:, 0]
        return logits

    def embed(self, ids: I64) -> F32:
        rows: F32 = self._embed.run(["inputs_embeds"], {"input_ids": ids[None]})[0][0]
        return rows

    def prefill(self, embeds: F32, layout: Layout | None = None) -> F32:
        assert self._cache is not None, "the runtime is closed"
        d = self._spec.decoder
        if layout is not None:
            self._layout = layout
        return self._cache.run(embeds, position_feeds(d, self._layout, self._cache.position, len(embeds)))

    def step(self, token: int) -> F32:
        return self.prefill(self.embed(np.array([token], np.int64)))

    @property
    def position(self) -> int:
        return self._cache.position if self._cache else 0

    def truncate(self, length: int) -> None:
        if self._cache:
            self._cache.position = min(self._cache.position, length)

    def close(self) -> None:
        self._vision = self._embed = self._cache = None
        self._decoders = []
