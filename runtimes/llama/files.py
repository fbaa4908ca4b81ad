"""A bundle's GGUF pair as llama.cpp has it loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgevlm.io.processor import usable_cores
from edgevlm.runtimes.base import EngineOptions, nothing
from edgevlm.runtimes.devices import llama_device
from edgevlm.runtimes.gguf import GgufFile, gguf_files
from edgevlm.runtimes.llama.check import check_agreement
from edgevlm.runtimes.llama.engine import load_beside_trial

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

NAME = "llama.cpp"


class LlamaFiles:
    """A bundle's GGUF pair, tried in a child process and loaded; both halves need the model."""

    def __init__(self, bundle: Bundle, options: EngineOptions, beside: Callable[[], object] = nothing) -> None:
        self.model, self.mmproj = gguf_files(bundle)
        self.embeddings = GgufFile(self.model)
        check_agreement(self.embeddings, bundle.manifest.spec)
        if self.mmproj:
            GgufFile(self.mmproj)  # llama.cpp loads a truncated file without an error
        self.engine = load_beside_trial(beside, self.model, *([self.mmproj] if self.mmproj else []))
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
