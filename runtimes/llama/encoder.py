"""The vision half of the gguf/ folder on llama.cpp's mtmd: our tiles in, features out."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevlm.bundle.manifest import target_of
from edgevlm.bundle.targets import GgufTarget
from edgevlm.errors import RuntimeFailed, Unsupported
from edgevlm.models.towers.vit import Vit
from edgevlm.runtimes.llama.files import NAME, LlamaFiles
from edgevlm.runtimes.llama.names import NO_TABLE, PROJECTORS
from edgevlm.types import F32, U8

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

MOST_TOKENS = 16384  # of one picture, on a tower of any size


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
