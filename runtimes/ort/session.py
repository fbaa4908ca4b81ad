"""Sessions of ONNX Runtime: the package, its execution providers, and how a graph is opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgevlm.errors import RuntimeFailed, Unsupported
from edgevlm.runtimes.base import disagreement
from edgevlm.runtimes.ort.products import session_options

Providers = list[tuple[str, dict[str, str]]]

_CPU = "CPUExecutionProvider"
# By device, in order of preference: (execution provider, its options, the package that has it). "gpu" leaves TensorRT
# out, which compiles for minutes and has no blockwise operators, and "cpu" XNNPACK, which has none of the fused ones:
# both are there by their own names, for fp16 and fp32 graphs of standard operators.
PROVIDERS: dict[str, tuple[tuple[str, dict[str, str], str], ...]] = {
    "cpu": ((_CPU, {}, "onnxruntime"),),
    "gpu": (
        ("CUDAExecutionProvider", {}, "onnxruntime-gpu (NVIDIA)"),
        ("MIGraphXExecutionProvider", {}, "onnxruntime-migraphx (AMD)"),
        ("DmlExecutionProvider", {}, "onnxruntime-directml (Windows)"),
        ("WebGpuExecutionProvider", {}, "onnxruntime-webgpu"),
        ("CoreMLExecutionProvider", {"MLComputeUnits": "CPUAndGPU"}, "onnxruntime (macOS)"),
    ),
    "npu": (
        ("QNNExecutionProvider", {}, "onnxruntime-qnn (Qualcomm)"),
        ("CoreMLExecutionProvider", {"MLComputeUnits": "CPUAndNeuralEngine"}, "onnxruntime (macOS)"),
    ),
    "cuda": (("CUDAExecutionProvider", {}, "onnxruntime-gpu (NVIDIA)"),),
    "tensorrt": (("TensorrtExecutionProvider", {}, "onnxruntime-gpu (NVIDIA, with TensorRT installed)"),),
    "coreml": (("CoreMLExecutionProvider", {}, "onnxruntime (macOS)"),),
    "webgpu": (("WebGpuExecutionProvider", {}, "onnxruntime-webgpu"),),
    "xnnpack": (("XnnpackExecutionProvider", {}, "a build of onnxruntime with --use_xnnpack"),),
    "qnn": (("QNNExecutionProvider", {}, "onnxruntime-qnn (Qualcomm)"),),
}


def import_onnxruntime() -> Any:
    """The onnxruntime module, imported with its telemetry off.

    Official builds since 1.29 write a device id and a database into the home folder when they are imported.
    `disable_telemetry_events()` comes too late to stop that; only this variable, set before the import, does.
    Where the program imported onnxruntime before, nothing can be changed any more.
    Raises EdgeVLMError where the package is missing or does not load.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError as error:
        if error.__cause__ is not None and not isinstance(
            error.__cause__, Exception
        ):  # Ctrl-C, while C++ was importing
            raise error.__cause__ from None
        raise RuntimeFailed(
            f"onnxruntime could not be imported ({error}): install it with `pip install onnxruntime`."
        ) from None
    return onnxruntime


def find_providers(ort: Any, device: str) -> Providers:
    available = ort.get_available_providers()
    for provider, options, _ in PROVIDERS[device]:
        if provider in available:
            return [(provider, options)] if provider == _CPU else [(provider, options), (_CPU, {})]
    packages = ", ".join(package for _, _, package in PROVIDERS[device])
    raise Unsupported(
        f"The installed onnxruntime {ort.__version__} has no {device.upper()} support: replace it with the "
        f"package for your hardware ({packages}), or use --device cpu."
    )


class Graph:
    """A session whose failures are one sentence: onnxruntime's exceptions share no base class."""

    def __init__(self, session: Any, path: Path) -> None:
        self._session, self._path = session, path

    def run(self, outputs: list[str], feeds: Mapping[str, Any]) -> Any:
        return self._call(self._session.run, outputs, feeds)

    def run_with_ort_values(self, outputs: list[str], feeds: Mapping[str, Any]) -> Any:
        return self._call(self._session.run_with_ort_values, outputs, feeds)

    def run_with_iobinding(self, binding: Any) -> None:
        self._call(self._session.run_with_iobinding, binding)

    def io_binding(self) -> Any:
        return self._session.io_binding()

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            raise disagreement(f"onnxruntime failed on '{self._path}' ({_reason(error)})") from None


def open_session(ort: Any, path: Path, providers: Providers, threads: int | None, unsigned: bool) -> Any:
    options = session_options(ort, unsigned)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or 0
    if path.name.startswith("vision"):
        # Threads that spin for a while after the last tile would take the cores from the decoder's.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    # The decoder's input shapes differ with every token, and the engine would keep one memory plan for each.
    options.enable_mem_pattern = False
    try:
        session = ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # the engine's exceptions share no base class
        raise RuntimeFailed(
            f"onnxruntime {ort.__version__} cannot load '{path}' ({_reason(error)}): the file is damaged, incomplete "
            "or needs a newer onnxruntime; check the bundle with `edgevlm verify`, or export it again."
        ) from None
    if providers[0][0] not in session.get_providers():
        raise Unsupported(
            f"onnxruntime has {providers[0][0]} but could not start it: install the driver and libraries "
            "that it needs, or use --device cpu."
        )
    return session


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
