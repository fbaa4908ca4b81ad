"""One engine for the pictures, another for the text: `--runtime onnxruntime+llama.cpp`.

Image features are plain arrays, so any two runtimes of one bundle fit together. On CPUs where ONNX Runtime's encoder
and llama.cpp's decoder are each the faster one, the pair is faster than either.
"""

from __future__ import annotations

from edgevlm.inputs.layout import Layout
from edgevlm.runtimes.base import F32, I64, Runtime


class HybridRuntime:
    """`Runtime` that encodes on `encoder` and does everything else on `decoder`. Owns both; each may hold its half."""

    def __init__(self, encoder: Runtime, decoder: Runtime) -> None:
        self._encoder, self._decoder = encoder, decoder
        self.name = f"{encoder.name}+{decoder.name}"
        same = encoder.device == decoder.device
        self.device = encoder.device if same else f"{encoder.device} + {decoder.device}"

    def encode(self, pixels: F32) -> F32:
        return self._encoder.encode(pixels)

    def embed(self, ids: I64) -> F32:
        return self._decoder.embed(ids)

    def prefill(self, embeds: F32, layout: Layout | None = None) -> F32:
        return self._decoder.prefill(embeds, layout)

    def step(self, token: int) -> F32:
        return self._decoder.step(token)

    @property
    def position(self) -> int:
        return self._decoder.position

    def truncate(self, length: int) -> None:
        self._decoder.truncate(length)

    def close(self) -> None:
        self._encoder.close()
        self._decoder.close()
