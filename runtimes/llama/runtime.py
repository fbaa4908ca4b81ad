"""The gguf/ folder of a bundle on llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgevlm.runtimes.base import EngineOptions, Runtime, nothing
from edgevlm.runtimes.llama.decoder import LlamaDecoder
from edgevlm.runtimes.llama.encoder import LlamaEncoder
from edgevlm.runtimes.llama.files import LlamaFiles

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle


def open_runtime(bundle: Bundle, options: EngineOptions, beside: Callable[[], object] = nothing) -> Runtime:
    """Both halves on one loaded model; the vision half is loaded when the first picture comes."""
    files = LlamaFiles(bundle, options, beside)
    return Runtime(LlamaEncoder(bundle, files), LlamaDecoder(bundle, files))


def open_encoder(bundle: Bundle, options: EngineOptions) -> LlamaEncoder:
    return LlamaEncoder(bundle, LlamaFiles(bundle, options))


def open_decoder(bundle: Bundle, options: EngineOptions) -> LlamaDecoder:
    return LlamaDecoder(bundle, LlamaFiles(bundle, options))
