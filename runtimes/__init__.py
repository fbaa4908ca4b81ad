"""Engines behind one protocol. An engine's package is imported when a bundle is opened on it, not before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevlm.errors import EdgeVLMError
from edgevlm.runtimes.base import Runtime

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

DEVICES = ("cpu", "gpu", "npu")
RUNTIMES = ("onnxruntime", "llama.cpp", "coreml", "eager")
ALIASES = {"ort": "onnxruntime", "onnx": "onnxruntime", "llama": "llama.cpp", "gguf": "llama.cpp"}
DEFAULTS = {"onnx": "onnxruntime", "gguf": "llama.cpp", "coreml": "coreml"}
PROVIDERS = ("cuda", "tensorrt", "coreml", "webgpu", "xnnpack", "qnn")  # devices of onnxruntime alone
STORAGES = ("fp16", "fp32")
MAX_THREADS = 256


def open_runtime(
    bundle: Bundle,
    name: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    portable: bool = False,
    storage: str = "fp16",
    parts: str = "all",
) -> Runtime:
    """The bundle loaded on one engine.

    name: one of `RUNTIMES` or `ALIASES`, or "encoder+decoder" for two of them; None is the first engine of
    `DEFAULTS` whose files the bundle has.
    device: "cpu", "gpu" or "npu", for onnxruntime also one of `PROVIDERS`; an engine that cannot reach it says what to
    install.
    threads: worker threads on the CPU; None leaves the choice to the engine.
    portable: use the graphs of standard operators only (onnxruntime).
    storage: "fp16", or "fp32" to keep the evaluator's values unrounded (coreml, off macOS).
    parts: "vision" or "text" for one half of a pair, which spares onnxruntime the other half's memory.

    Raises EdgeVLMError for an unknown name or device, for artifacts that the bundle lacks or holds damaged,
    and for an engine that is not installed.
    """
    if name is None:
        targets = bundle.manifest.targets
        name = next((engine for target, engine in DEFAULTS.items() if target in targets), "onnxruntime")
    if name.count("+") == 1:
        return _open_pair(bundle, name, device, threads, portable)
    runtime = ALIASES.get(name, name)
    if runtime not in RUNTIMES:
        raise EdgeVLMError(
            f"Runtime '{runtime}' does not exist: choose one of {', '.join(RUNTIMES)}, "
            "or two for pictures and text, such as onnxruntime+llama.cpp."
        )
    if device not in DEVICES and not (runtime == "onnxruntime" and device in PROVIDERS):
        raise EdgeVLMError(f"Device '{device}' does not exist: choose one of {', '.join(DEVICES)}.")
    if threads is not None and (type(threads) is not int or not 1 <= threads <= MAX_THREADS):
        raise EdgeVLMError(f"threads is {threads!r}: give a whole number from 1 to {MAX_THREADS}.")
    if storage not in STORAGES:
        raise EdgeVLMError(f"Storage '{storage}' does not exist: choose one of {', '.join(STORAGES)}.")
    if runtime == "eager":
        from edgevlm.runtimes.eager import open_eager

        return open_eager(bundle, device)
    if runtime == "llama.cpp":
        from edgevlm.runtimes.llama.runtime import LlamaRuntime

        return LlamaRuntime(bundle, device, threads)
    if runtime == "coreml":
        from edgevlm.runtimes.coreml import CoreMLRuntime

        return CoreMLRuntime(bundle, device, threads, storage=storage)
    from edgevlm.runtimes.ort.runtime import OrtRuntime

    return OrtRuntime(bundle, device, threads, portable, parts)


def _open_pair(bundle: Bundle, names: str, device: str, threads: int | None, portable: bool) -> Runtime:
    from edgevlm.runtimes.hybrid import HybridRuntime

    first, second = names.split("+")
    encoder = open_runtime(bundle, first, device, threads, portable, parts="vision")
    try:
        decoder = open_runtime(bundle, second, device, threads, portable, parts="text")
        return HybridRuntime(encoder, decoder)
    except BaseException:
        encoder.close()
        raise
