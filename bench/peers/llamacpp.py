"""Stock llama.cpp through llama-cpp-python's bindings: Q4_0 by its own quantizer, its own mtmd for pictures.

Its converter is not part of the package, so the fp16 files are EdgeVLM's; the decoder is quantized by
`llama_model_quantize`, and the encoder stays fp16, as in the published files.
"""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from protocol import F32, OneByOne, serve

Q4_0 = 2  # llama_ftype
BATCH = 512  # positions per call


def prepare(checkpoint: Path, folder: Path) -> None:
    import llama_cpp

    bundle = folder / "fp16"
    command = [sys.executable, "-m", "edgevlm", "export", str(checkpoint), str(bundle), "--target", "gguf"]
    subprocess.run([*command, "--quantize", "fp16", "--no-gate", "--force"], check=True, stdout=sys.stderr)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = Q4_0, os.cpu_count()
    model = next(path for path in (bundle / "gguf").glob("*.gguf") if "mmproj" not in path.name)
    if llama_cpp.llama_model_quantize(bytes(model), bytes(folder / "q4_0.gguf"), ctypes.byref(params)):
        raise RuntimeError("llama_model_quantize failed")


def load(folder: Path, threads: int) -> LlamaCpp:
    return LlamaCpp(folder, threads)


class LlamaCpp(OneByOne):
    def __init__(self, folder: Path, threads: int) -> None:
        import llama_cpp
        from llama_cpp import mtmd_cpp

        from edgevlm.bundle.manifest import open_bundle

        self.llama, self.mtmd, self.threads = llama_cpp, mtmd_cpp, threads
        self.spec = open_bundle(folder / "fp16").manifest.spec
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(bytes(folder / "q4_0.gguf"), params)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = 2048, BATCH, BATCH
        context.n_threads = context.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        self.mmproj, self.vision = next((folder / "fp16" / "gguf").glob("*mmproj*")), None
        self.size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def _open_vision(self, tokens: int) -> None:
        """mtmd for pictures of so many tokens: a tile stays one, without the overview that would be added."""
        vision = self.mtmd.mtmd_context_params_default()
        vision.use_gpu, vision.print_timings, vision.n_threads = False, False, self.threads
        vision.image_min_tokens = vision.image_max_tokens = tokens
        self.vision = self.mtmd.mtmd_init_from_file(bytes(self.mmproj), self.model, vision)
        if not self.vision:
            raise RuntimeError("mtmd_init_from_file failed")

    def encode(self, tile: npt.NDArray[np.uint8]) -> F32:
        mtmd, (height, width) = self.mtmd, tile.shape[:2]
        if self.vision is None:
            self._open_vision(math.prod(self.spec.token_grid(height, width)))
        bitmap = mtmd.mtmd_bitmap_init(width, height, tile.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
        chunks, marker = mtmd.mtmd_input_chunks_init(), mtmd.mtmd_default_marker()
        text = mtmd.mtmd_input_text(text=marker, text_len=len(marker), add_special=False, parse_special=True)
        if mtmd.mtmd_tokenize(self.vision, chunks, ctypes.byref(text), (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap), 1):
            raise RuntimeError("mtmd_tokenize failed")
        found = [mtmd.mtmd_input_chunks_get(chunks, i) for i in range(mtmd.mtmd_input_chunks_size(chunks))]
        chunk = next(c for c in found if mtmd.mtmd_input_chunk_get_type(c) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE)
        if mtmd.mtmd_encode_chunk(self.vision, chunk):
            raise RuntimeError("mtmd_encode_chunk failed")
        tokens = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        features = np.empty((tokens, self.spec.decoder.feature_width), np.float32)
        ctypes.memmove(features.ctypes.data, mtmd.mtmd_get_output_embd(self.vision), features.nbytes)
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)
        return features

    def restart(self) -> None:
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), True)

    def append(self, ids: list[int]) -> int:
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            tokens: Any = (self.llama.llama_token * len(part))(*part)
            if self.llama.llama_decode(self.context, self.llama.llama_batch_get_one(tokens, len(part))):
                raise RuntimeError("llama_decode failed")
        logits = self.llama.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, (self.size,)).argmax())


if __name__ == "__main__":
    serve(prepare, load)
