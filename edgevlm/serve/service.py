"""A bundle that is being served: what it is called, what it can, and its sessions once they are open."""

from __future__ import annotations

import time
from typing import Any

from edgevlm import __version__
from edgevlm.bundle.manifest import Bundle
from edgevlm.errors import Closed
from edgevlm.generate.chat import warm_up
from edgevlm.generate.opening import open_pipelines
from edgevlm.serve.guard import Budget
from edgevlm.serve.metrics import Metrics
from edgevlm.serve.options import ServeOptions
from edgevlm.serve.refusals import Refusal
from edgevlm.serve.sessions import Sessions

BODIES = 4  # requests of the largest size that are held at the same time


class Service:
    """What the routes ask. Opened by one thread, while others may ask already."""

    def __init__(self, bundle: Bundle, options: ServeOptions) -> None:
        manifest = bundle.manifest
        self.bundle, self.options, self.metrics = bundle, options, Metrics()
        self.name, self.started = manifest.model.name, int(time.time())
        self.names = tuple(dict.fromkeys((self.name, *options.aliases, bundle.folder.resolve().name)))
        self.context = manifest.spec.decoder.context_length
        chat = bundle.prompt_spec.chat
        self.switch = chat.thinking is not None and chat.direct is not None
        self.budget = Budget(BODIES * options.max_body)
        self._sessions: Sessions | None = None
        self._closed = False

    @property
    def ready(self) -> bool:
        return self._sessions is not None

    @property
    def sessions(self) -> Sessions:
        """Raises Refusal while the model is being loaded."""
        if self._sessions is None:
            raise Refusal(
                503, "The model is being loaded: ask again soon.", code="loading", headers={"Retry-After": "2"}
            )
        return self._sessions

    def open(self) -> None:
        """Load the model, once for each session, and answer a first question with each. Raises EdgeVLMError."""
        options = self.options
        threads = None if options.threads is None else max(1, options.threads // options.parallel)
        made = open_pipelines(
            self.bundle, options.parallel, options.runtime, options.device, threads, reuse=options.reuse,
            cache_folder=options.cache_folder,
        )  # fmt: skip
        try:
            for pipeline in made:
                warm_up(pipeline)
            if self._closed:
                raise Closed("The server was stopped while it loaded the model: start it again.")
            self._sessions = Sessions(made, options.queue, self.metrics)
        except BaseException:
            for pipeline in made:
                pipeline.runtime.close()
            raise

    def close(self) -> None:
        """Free the engines. Answers under way are cancelled."""
        self._closed = True
        if self._sessions is not None:
            self._sessions.close()

    def model(self) -> dict[str, Any]:
        """As OpenAI lists a model, with what llama.cpp's and vLLM's servers say beside it."""
        manifest = self.bundle.manifest
        return {
            "id": self.name,
            "object": "model",
            "created": self.started,
            "owned_by": "edgevlm",
            "aliases": list(self.names[1:]),
            "architecture": {"input_modalities": ["text", "image"], "output_modalities": ["text"]},
            "max_model_len": self.context,
            "meta": {
                "n_ctx": self.context,
                "n_vocab": manifest.spec.decoder.vocab_size,
                "size": sum(info.size for info in manifest.files.values()),
            },
        }

    def props(self) -> dict[str, Any]:
        """What clients of llama.cpp's server look for. The template is named by what it can be told, and no more."""
        return {
            "default_generation_settings": {"n_ctx": self.context},
            "total_slots": self.options.parallel,
            "model_alias": self.name,
            "modalities": {"vision": True, "audio": False},
            "chat_template": "{# enable_thinking #}" if self.switch else "",
            "chat_template_caps": {"supports_tools": False},
            "build_info": f"edgevlm-{__version__}",
        }
