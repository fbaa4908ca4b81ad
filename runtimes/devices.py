"""What the engines of this machine can run on: for `edgevlm info --devices`, and for --device."""

from __future__ import annotations

import ctypes
from typing import Any

from edgevlm.errors import EdgeVLMError, Unsupported
from edgevlm.runtimes.llama.engine import TESTED, load_engine

# ggml_backend_dev_type, ggml-backend.h; what it calls accelerators are BLAS and AMX, which work for the CPU
_KINDS = {0: "cpu", 1: "gpu", 2: "gpu", 3: "cpu"}
_BUILDS = "-DGGML_CUDA=on (NVIDIA), -DGGML_METAL=on (Apple), -DGGML_VULKAN=on (any GPU) or -DGGML_OPENCL=on (Adreno)"


def list_devices() -> list[dict[str, Any]]:
    """One entry per engine: {"engine", "version", "devices"}, or {"engine", "error"} where it does not load.

    A device has "name", "description" and "kind" ("cpu", "gpu", "npu" or "other").
    """
    engines: list[dict[str, Any]] = []
    for name, read in (("onnxruntime", _onnxruntime), ("llama.cpp", _llama)):
        try:
            engines.append({"engine": name, **read()})
        except EdgeVLMError as error:
            engines.append({"engine": name, "error": str(error)})
    return engines


def _onnxruntime() -> dict[str, Any]:
    from edgevlm.runtimes.ort.session import PROVIDERS, import_onnxruntime

    ort = import_onnxruntime()
    kinds = {"TensorrtExecutionProvider": "gpu", "XnnpackExecutionProvider": "cpu"}
    for kind in ("npu", "gpu", "cpu"):
        kinds |= {provider: kind for provider, *_ in PROVIDERS[kind]}
    devices = [
        {
            "name": name,
            "description": name.removesuffix("ExecutionProvider"),
            "kind": kinds.get(name, "other"),
        }
        for name in ort.get_available_providers()
    ]
    return {"version": ort.__version__, "devices": devices}


def _llama() -> dict[str, Any]:
    return {"version": load_engine().version, "devices": llama_devices()}


def llama_devices() -> list[dict[str, str]]:
    """The devices of the backends that the installed llama.cpp was built with."""
    load_engine()
    from llama_cpp._ggml import libggml

    def text(function: str, device: int) -> str:
        call = getattr(libggml, function)
        call.argtypes, call.restype = [ctypes.c_void_p], ctypes.c_char_p
        return (call(device) or b"").decode("utf-8", "replace")

    libggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    libggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    libggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    libggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    found = []
    for i in range(libggml.ggml_backend_dev_count()):
        device = libggml.ggml_backend_dev_get(i)
        found.append(
            {
                "name": text("ggml_backend_dev_name", device),
                "description": text("ggml_backend_dev_description", device),
                "kind": _KINDS.get(libggml.ggml_backend_dev_type(device), "other"),
            }
        )
    return found


def llama_device(device: str) -> str:
    """What llama.cpp will run on, in words, "" for the CPU; EdgeVLMError where it has no such device.

    A build with GPU support on a machine without a driver would fall back to the CPU silently.
    """
    if device == "cpu":
        return ""
    if device == "gpu":
        if found := [entry["description"] for entry in llama_devices() if entry["kind"] == "gpu"]:
            return found[0]
        if load_engine().llama.llama_supports_gpu_offload():
            raise Unsupported(
                "llama.cpp was built with GPU support but finds no GPU: install its driver, or use --device cpu."
            )
        raise Unsupported(
            "The installed llama.cpp was built for the CPU alone: build it with GPU support, `CMAKE_ARGS=... pip "
            f"install --force-reinstall --no-cache-dir llama-cpp-python=={TESTED}` with {_BUILDS}, or use --device cpu."
        )
    raise Unsupported(
        f"llama.cpp has no {device.upper()} support here: use --device gpu or cpu, or --runtime onnxruntime with an "
        "execution provider for it."
    )
