"""The text half of the gguf/ folder on llama.cpp: our embeddings through its batch, logits out."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevlm.errors import EdgeVLMError, RuntimeFailed
from edgevlm.inputs.layout import Layout, positions, runs
from edgevlm.models.eager import widen
from edgevlm.runtimes.base import Stopped, context_error, never, rewound
from edgevlm.runtimes.llama.files import NAME, LlamaFiles
from edgevlm.runtimes.llama.names import EMBEDDINGS, PER_LAYER
from edgevlm.types import F32, I64

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

BATCH = 512  # positions per call of the engine; its working memory grows with it
FIRST_POSITIONS = 512  # of the KV cache, which doubles when it is full


class LlamaDecoder:
    """`Decoder` on llama.cpp."""

    name = NAME

    def __init__(self, bundle: Bundle, files: LlamaFiles) -> None:
        self._spec, self._engine, self.device = bundle.manifest.spec.decoder, files.engine, files.device
        self._embeddings, self._threads = files.embeddings, files.threads
        # Float weights: keep the KV cache in fp32 too; with quantized weights its rounding does not matter.
        self.rounds = (bundle.manifest.recipe.get("decoder") or {}).get("kind") not in ("fp32", "fp16")
        self._exact = not files.gpu and not self.rounds
        self._model: LlamaFiles | None = files.hold()
        self._context: Any = None
        self._capacity = self._batch = self._position = 0
        self.layout = Layout(0)

    def embed(self, ids: I64) -> F32:
        """llama.cpp scales the embeddings of its own tokens, and takes given ones as they are."""
        ids, scale = np.asarray(ids, np.int64), self._spec.embed_scale
        rows = self._embeddings.rows(EMBEDDINGS, ids)
        rows = rows if scale == 1.0 else rows * np.float32(scale)
        if self._spec.per_layer:
            second = self._embeddings.rows(PER_LAYER, ids) * np.float32(self._spec.per_layer_scale)
            return np.concatenate([rows, second], axis=1)
        return widen(rows, self._spec.embed_width)

    def forward(self, embeds: F32, layout: Layout | None = None, stopped: Callable[[], bool] = never) -> F32:
        assert self._model, "the runtime is closed"
        if layout is not None:
            self.layout = layout
        start, stop = self._position, self._position + len(embeds)
        parts = list(runs(self.layout, self._spec.mask, start, stop, BATCH))
        self._reserve(stop, max((end - first for first, end, _ in parts), default=1))
        embeds = np.ascontiguousarray(embeds, np.float32)
        for first, end, whole in parts:
            if first > start and stopped():
                raise Stopped
            rows = embeds[first - start : end - start]
            if self._spec.per_layer:
                self._read_twice(rows)
            else:
                self._decode(embeds=rows, causal=not whole)
        last: F32 = self._logits(1)[0]
        return last

    def _read_twice(self, embeds: F32) -> None:
        """Positions of a prompt where llama.cpp itself looks each token up in a second table, and gives positions that
        come as embeddings the first row of it: text goes in as tokens, but for those with embeddings of their own."""
        start, layout = self._position, self.layout
        pictured = np.zeros(start + len(embeds), np.bool_)
        for span in layout.spans:
            pictured[span.places[span.places < len(pictured)]] = True
        for marker in layout.markers:
            pictured[marker.start : marker.start + 1] = True
        if len(layout.ids) < len(pictured):
            raise EdgeVLMError(
                "llama.cpp looks each token of this model up in two tables: give the layout of the whole prompt with "
                "its tokens, and each token of the answer to step."
            )
        ends = [*(np.flatnonzero(np.diff(pictured[start:])) + 1).tolist(), len(embeds)]
        for first, end in zip([0, *ends], ends, strict=False):
            if pictured[start + first]:
                self._decode(embeds=np.ascontiguousarray(embeds[first:end, : self._spec.hidden_size]))
            else:
                self._decode(tokens=layout.ids[start + first : start + end])

    def step(self, token: int) -> F32:
        last: F32 = self.steps((token,))[0]
        return last

    @property
    def most_steps(self) -> int:
        """A cache with windows forgets what a rewind would need."""
        return 0 if self._spec.replaces or self._spec.windows - {None} else BATCH

    def steps(self, tokens: Sequence[int]) -> F32:
        assert self._model, "the runtime is closed"
        spec, count = self._spec, len(tokens)
        self._reserve(self._position + count, count)
        if spec.embed_scale != 1.0 and not spec.per_layer:  # llama.cpp's own may be rounded in another way
            rows = np.ascontiguousarray(self.embed(np.array(tokens, np.int64)), np.float32)
            self._decode(embeds=rows, keep=count)
        else:
            self._decode(tokens=tokens, keep=count)
        return self._logits(count)

    def _decode(
        self, *, embeds: F32 | None = None, tokens: Sequence[int] = (), causal: bool = True, keep: int = 1
    ) -> None:
        """causal: whether a position sees only those before it, and not all of this call. keep: of how many positions,
        the last ones, logits are wanted."""
        llama, count = self._engine.llama, len(tokens) if embeds is None else len(embeds)
        batch = llama.llama_batch_init(count, 0 if embeds is None else embeds.shape[1], 1)
        places, own = self._places(count, rows=embeds is not None), ctypes.addressof(batch.pos.contents)
        try:
            batch.n_tokens = count
            if embeds is None:
                ctypes.memmove(batch.token, np.array(tokens, np.int32).ctypes.data, 4 * count)
            else:
                ctypes.memmove(batch.embd, embeds.ctypes.data, embeds.nbytes)
            batch.pos = ctypes.cast(places.ctypes.data, type(batch.pos))
            for i in range(count):
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = i >= count - keep
            llama.llama_set_causal_attn(self._context, causal)
            if llama.llama_decode(self._context, batch) != 0:
                raise RuntimeFailed(
                    f"llama.cpp could not compute {count} positions ({self._engine.reason()}): free some memory."
                )
        finally:
            batch.pos = ctypes.cast(own, type(batch.pos))  # the batch frees what it allocated
            llama.llama_batch_free(batch)
        self._position += count

    def _places(self, count: int, rows: bool) -> npt.NDArray[np.int32]:
        """The positions of the next `count` tokens, which name cells of the cache, too.

        Under M-RoPE, embeddings have four rows of them: time, row, column and nothing. A token of text has one.
        """
        axes, start, places = self._spec.axes, self._position, self._spec.places
        found = positions(self.layout, axes, start, start + count, places).astype(np.int32)
        if axes == 1 or not rows:
            return np.ascontiguousarray(found[0])
        return np.concatenate([found, np.zeros((4 - axes, count), np.int32)])

    def _logits(self, keep: int) -> F32:
        """(keep, V) of the last call's."""
        pointer = self._engine.llama.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (keep, self._spec.vocab_size)).copy()

    def _reserve(self, total: int, together: int = 1) -> None:
        """A KV cache for `total` positions: a model of 8192 never allocates them for a short question.

        together: positions of the largest call.
        """
        limit = self._spec.context_length
        if total > limit:
            raise context_error(total, limit)
        if total <= self._capacity and together <= self._batch:
            return
        llama, old = self._engine.llama, self._context
        grown = max(FIRST_POSITIONS, 2 * self._capacity, -(-total // 256) * 256)
        capacity = self._capacity if total <= self._capacity else min(grown, limit)
        batch = min(max(BATCH, together), capacity)
        assert self._model, "the runtime is closed"
        new = self._engine.new_context(self._model.handle, capacity, batch, self._threads, self._exact)
        if self._position:
            size = llama.llama_state_seq_get_size(old, 0)
            state = (ctypes.c_uint8 * size)()
            llama.llama_state_seq_get_data(old, state, size, 0)
            llama.llama_state_seq_set_data(new, state, size, 0)
        if old:
            llama.llama_free(old)
        self._context, self._capacity, self._batch = new, capacity, batch

    @property
    def position(self) -> int:
        return self._position

    def rewind(self, length: int) -> None:
        self._forget(rewound(self._spec, self._position, length))

    def copied(self) -> dict[str, npt.NDArray[Any]]:
        llama = self._engine.llama
        flag = llama.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        copy = np.empty(llama.llama_state_seq_get_size_ext(self._context, 0, flag), np.uint8)
        llama.llama_state_seq_get_data_ext(self._context, _pointer(copy), copy.size, 0, flag)
        return {"partial": copy}

    def go_back(self, length: int, copied: Mapping[str, npt.NDArray[Any]]) -> None:
        llama, copy = self._engine.llama, copied["partial"]
        flag = llama.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        if not llama.llama_state_seq_set_data_ext(self._context, _pointer(copy), copy.size, 0, flag):
            raise RuntimeFailed("llama.cpp could not go back to an earlier state: ask again.")
        self._forget(length)

    def _forget(self, length: int) -> None:
        """Every position from `length` on."""
        if not self._context or length == self._position > 0:  # at 0, what an interrupted call left is removed
            return
        axes, start = self._spec.axes, max(0, length - 1)
        found = positions(self.layout, axes, start, start + 2, self._spec.places)
        before, cut = found[0] if length else (-1, 0)
        if before == cut:
            raise EdgeVLMError(
                "llama.cpp cannot forget a part of a picture, whose tokens share one position: forget all of it."
            )
        llama = self._engine.llama
        llama.llama_memory_seq_rm(llama.llama_get_memory(self._context), 0, int(cut), -1)
        self._position, self.layout = length, self.layout if length else Layout(0)

    def close(self) -> None:
        if self._context:
            self._engine.llama.llama_free(self._context)
        if self._model:
            self._model.release()
        self._context = self._model = None
        self._capacity = self._batch = self._position = 0


def _pointer(array: npt.NDArray[np.uint8]) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
