"""The gguf/ folder of a bundle on llama.cpp: our tiles in, our embeddings through its batch, logits out."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevlm.bundle.manifest import target_of
from edgevlm.bundle.targets import GgufTarget
from edgevlm.errors import EdgeVLMError, RuntimeFailed, Unsupported
from edgevlm.inputs.layout import Layout, positions, runs
from edgevlm.io.processor import usable_cores
from edgevlm.models.eager import widen
from edgevlm.models.towers.vit import Vit
from edgevlm.runtimes.base import EngineOptions, Runtime, Stopped, context_error, never, rewound
from edgevlm.runtimes.devices import llama_device
from edgevlm.runtimes.gguf import GgufFile, gguf_files
from edgevlm.runtimes.llama.check import check_agreement
from edgevlm.runtimes.llama.engine import load_beside_trial
from edgevlm.runtimes.llama.names import EMBEDDINGS, NO_TABLE, PER_LAYER, PROJECTORS
from edgevlm.types import F32, I64, U8

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

NAME = "llama.cpp"
BATCH = 512  # positions per call of the engine; its working memory grows with it
MOST_TOKENS = 16384  # of one picture, on a tower of any size
FIRST_POSITIONS = 512  # of the KV cache, which doubles when it is full


def open_runtime(bundle: Bundle, options: EngineOptions) -> Runtime:
    """Both halves on one loaded model; the vision half is loaded when the first picture comes."""
    files = LlamaFiles(bundle, options)
    return Runtime(LlamaEncoder(bundle, files), LlamaDecoder(bundle, files))


def open_encoder(bundle: Bundle, options: EngineOptions) -> LlamaEncoder:
    return LlamaEncoder(bundle, LlamaFiles(bundle, options))


def open_decoder(bundle: Bundle, options: EngineOptions) -> LlamaDecoder:
    return LlamaDecoder(bundle, LlamaFiles(bundle, options))


class LlamaFiles:
    """A bundle's GGUF pair, tried in a child process and loaded; both halves need the model."""

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        self.model, self.mmproj = gguf_files(bundle)
        self.embeddings = GgufFile(self.model)
        check_agreement(self.embeddings, bundle.manifest.spec)
        if self.mmproj:
            GgufFile(self.mmproj)  # llama.cpp loads a truncated file without an error
        self.engine = load_beside_trial(self.model, *([self.mmproj] if self.mmproj else []))
        gpu = llama_device(options.device)
        self.gpu, self.threads = bool(gpu), options.threads or usable_cores()
        self.engine.silence()
        self.handle: Any = self.engine.load_model(self.model, self.gpu)
        self._users = 0
        self.device = gpu or f"CPU ({self.threads} thread{'s' if self.threads > 1 else ''})"

    def hold(self) -> LlamaFiles:
        self._users += 1
        return self

    def release(self) -> None:
        """Free the model when neither half uses it any more."""
        self._users -= 1
        if self._users <= 0 and self.handle:
            self.engine.llama.llama_model_free(self.handle)
            self.handle = None


class LlamaEncoder:
    """`Encoder` on llama.cpp's mtmd, which takes 8-bit pictures and normalizes them itself."""

    name = NAME

    def __init__(self, bundle: Bundle, files: LlamaFiles) -> None:
        self._no_pictures = target_of(bundle, GgufTarget).no_pictures
        self._spec, self._engine, self.device = bundle.manifest.spec, files.engine, files.device
        self._files: LlamaFiles | None = files.hold()
        self._table = PROJECTORS.get(target_of(bundle, GgufTarget).projector_type or "", NO_TABLE)
        self._limits = range(0)
        self._mtmd: Any = None

    def encode(self, views: Sequence[U8]) -> list[F32]:
        assert self._files, "the runtime is closed"
        files, spec = self._files, self._spec
        if files.mmproj is None:
            raise Unsupported(
                f"{self._no_pictures or 'The GGUF files hold no vision tower'}: encode them with another engine, "
                "--runtime onnxruntime+llama.cpp."
            )
        if any(view.shape[2] > 3 for view in views):
            raise Unsupported(
                "llama.cpp encodes single pictures, and this model sees a video's frames two by two: encode them with "
                "another engine, --runtime onnxruntime+llama.cpp."
            )
        features = []
        for view in views:
            rows, cols = spec.token_grid(*view.shape[:2])
            exact = isinstance(spec.vision, Vit) or self._table.longest_edge
            limits = range(rows * cols, rows * cols + 1) if exact else range(1, MOST_TOKENS + 1)
            if limits != self._limits:
                self._free()
                self._mtmd = self._engine.load_mmproj(files.mmproj, files.handle, limits, files.threads, files.gpu)
                self._limits = limits
            breaks = rows - 1 if self._table.line_break else 0
            found = np.empty((rows * cols + breaks, spec.decoder.feature_width), np.float32)
            self._encode_tile(np.ascontiguousarray(view), found)
            features.append(np.delete(found, np.arange(1, breaks + 1) * (cols + 1) - 1, axis=0) if breaks else found)
        return features

    def _encode_tile(self, tile: np.ndarray[Any, Any], out: F32) -> None:
        """uint8 (H, W, 3) to `out` (n, D). mtmd wraps one bitmap into texts, a tile and an overview, which are equal
        here; the first image chunk is taken."""
        mtmd, (height, width) = self._engine.mtmd, tile.shape[:2]
        bitmap = mtmd.mtmd_bitmap_init(width, height, tile.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
        chunks = mtmd.mtmd_input_chunks_init()
        try:
            marker = mtmd.mtmd_default_marker()
            text = mtmd.mtmd_input_text(text=marker, text_len=len(marker), add_special=False, parse_special=True)
            bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
            failed = mtmd.mtmd_tokenize(self._mtmd, chunks, ctypes.byref(text), bitmaps, 1)
            found = (
                []
                if failed
                else [
                    chunk
                    for chunk in (
                        mtmd.mtmd_input_chunks_get(chunks, i) for i in range(mtmd.mtmd_input_chunks_size(chunks))
                    )
                    if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE
                ]
            )
            if not found or mtmd.mtmd_input_chunk_get_n_tokens(found[0]) != len(out):
                raise RuntimeFailed(
                    f"llama.cpp did not take a view of {width} x {height} pixels as it is: use llama-cpp-python's "
                    "tested version."
                )
            if mtmd.mtmd_encode_chunk(self._mtmd, found[0]) != 0:
                raise RuntimeFailed(f"llama.cpp could not encode a tile ({self._engine.reason()}): free some memory.")
            ctypes.memmove(out.ctypes.data, mtmd.mtmd_get_output_embd(self._mtmd), out.nbytes)
        finally:
            mtmd.mtmd_input_chunks_free(chunks)
            mtmd.mtmd_bitmap_free(bitmap)

    def _free(self) -> None:
        if self._mtmd:
            self._engine.mtmd.mtmd_free(self._mtmd)
        self._mtmd = None

    def close(self) -> None:
        self._free()
        if self._files:
            self._files.release()
        self._files = None


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
        length = rewound(self._spec, self._position, length)
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
