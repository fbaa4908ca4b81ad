"""Engines behind one protocol. An engine's package is imported when a bundle is opened on it, not before."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgevlm.errors import EdgeVLMError
from edgevlm.runtimes.base import Engine, EngineOptions, Runtime, nothing

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

DEVICES = ("cpu", "gpu", "npu")
RUNTIMES = ("onnxruntime", "llama.cpp", "coreml", "eager")
ALIASES = {"ort": "onnxruntime", "onnx": "onnxruntime", "llama": "llama.cpp", "gguf": "llama.cpp"}
DEFAULTS = {"onnx": "onnxruntime", "gguf": "llama.cpp", "coreml": "coreml"}
PROVIDERS = ("cuda", "tensorrt", "coreml", "webgpu", "xnnpack", "qnn")  # devices of onnxruntime alone
_MODULES = {"onnxruntime": "ort.runtime", "llama.cpp": "llama.runtime", "coreml": "coreml.runtime", "eager": "eager"}


def open_runtime(
    bundle: Bundle,
    name: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    portable: bool = False,
    storage: str = "fp16",
    beside: Callable[[], object] = nothing,
) -> Runtime:
    """The bundle loaded for answering, on one engine or on two.

    name: one of `RUNTIMES` or `ALIASES`, or "encoder+decoder" for two of them; None is the first engine of
    `DEFAULTS` whose files the bundle has.
    device: "cpu", "gpu" or "npu", for onnxruntime also one of `PROVIDERS`; an engine that cannot reach it says what to
    install.
    threads: worker threads on the CPU; None leaves the choice to the engine.
    portable: use the graphs of standard operators only (onnxruntime).
    storage: "fp16", or "fp32" to keep the evaluator's values unrounded (coreml, off macOS).
    beside: called once, from any thread, while the engine loads: what else has to be read can be read there.

    Raises EdgeVLMError for an unknown name or device, for artifacts that the bundle lacks or holds damaged, and for an
    engine that is not installed.
    """
    if not isinstance(name, str | None):
        raise EdgeVLMError(f"The runtime is of type {type(name).__name__}: give a name such as 'onnxruntime', or None.")
    if not hasattr(bundle, "manifest"):
        raise EdgeVLMError(f"The bundle is of type {type(bundle).__name__}: open it with open_bundle first.")
    if name is None:
        targets = bundle.manifest.targets
        name = next((engine for target, engine in DEFAULTS.items() if target in targets), "onnxruntime")
    options = EngineOptions(device, threads, portable, storage)
    engines = [_find_engine(part, options) for part in name.split("+", 1)]
    if len(engines) == 1:
        return engines[0].open_runtime(bundle, options, beside)
    beside()
    encoder = engines[0].open_encoder(bundle, options)
    try:
        return Runtime(encoder, engines[1].open_decoder(bundle, options))
    except BaseException:
        encoder.close()
        raise


def _find_engine(name: str, options: EngineOptions) -> Engine:
    """The module that opens a bundle on the engine `name`."""
    engine = ALIASES.get(name, name)
    if engine not in RUNTIMES:
        raise EdgeVLMError(
            f"Runtime '{engine}' does not exist: choose one of {', '.join(RUNTIMES)}, "
            "or two for pictures and text, such as onnxruntime+llama.cpp."
        )
    device = options.device
    if device not in DEVICES and not (engine == "onnxruntime" and device in PROVIDERS):
        raise EdgeVLMError(f"Device '{device}' does not exist: choose one of {', '.join(DEVICES)}.")
    module: Engine = importlib.import_module(f"edgevlm.runtimes.{_MODULES[engine]}")
    return module
