"""What executes the packages: Apple's CoreML on macOS, elsewhere the evaluator in numpy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from edgevlm.errors import EdgeVLMError, install_hint
from edgevlm.runtimes.coreml.library import import_coremltools
from edgevlm.runtimes.mil.evaluator import MilEvaluator, Observer, State
from edgevlm.runtimes.mil.file import MilPackage

KEPT_VIEWS = 32
_COMPUTE_UNITS = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "npu": "CPU_AND_NE"}


class VisionEngine(Protocol):
    """Runs the encoder's package."""

    device: str

    def run(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]: ...
    def close(self) -> None: ...


class DecoderEngine(Protocol):
    """Runs the decoder's package and holds its state."""

    device: str

    def run(self, function: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]: ...
    def reset(self) -> None: ...
    def close(self) -> None: ...


class EvaluatedVision:
    """The encoder's package on numpy. `observer` sees every value before it is stored."""

    def __init__(self, package: MilPackage, storage: str) -> None:
        self.evaluator = MilEvaluator(package, storage)
        self.observer: Observer | None = None
        self._known: dict[bytes, Mapping[str, Any]] = {}  # a view takes seconds, and the gate asks for some often
        self.device = f"CPU (evaluator in numpy, {storage} storage)"

    def run(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.observer is not None:
            return self.evaluator.run(inputs, observer=self.observer)
        key = hashlib.sha256(b"".join(np.ascontiguousarray(value).tobytes() for value in inputs.values())).digest()
        if key not in self._known:
            if len(self._known) >= KEPT_VIEWS:
                self._known.pop(next(iter(self._known)))
            self._known[key] = self.evaluator.run(inputs)
        return self._known[key]

    def close(self) -> None:
        self._known = {}


class EvaluatedDecoder:
    """The decoder's package on numpy. `observer` sees every value before it is stored."""

    def __init__(self, package: MilPackage, function: str, storage: str) -> None:
        self.evaluator = MilEvaluator(package, storage)
        self._function = function
        self.reset()
        self.observer: Observer | None = None
        self.device = f"CPU (evaluator in numpy, {storage} storage)"

    def run(self, function: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.evaluator.run(inputs, self.state, function, self.observer)

    def reset(self) -> None:
        self.state: State = self.evaluator.make_state(self._function)

    def close(self) -> None:
        self.state = {}


class PredictedVision:
    """The encoder's package on Apple's CoreML, through coremltools. Written from its documentation; macOS only."""

    def __init__(self, path: Path, device: str) -> None:
        ct = _coremltools()
        units = getattr(ct.ComputeUnit, _COMPUTE_UNITS[device])
        self._model = ct.models.MLModel(str(path), compute_units=units)
        self.device = f"CoreML ({units.name})"

    def run(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._model.predict(_device_arrays(inputs))
        return found

    def close(self) -> None:
        self._model = None


class PredictedDecoder:
    """The decoder's package on Apple's CoreML, through coremltools. Written from its documentation; macOS only."""

    def __init__(self, path: Path, functions: list[str], device: str) -> None:
        ct = _coremltools()
        units = getattr(ct.ComputeUnit, _COMPUTE_UNITS[device])
        self._functions = {
            name: ct.models.MLModel(
                str(path), compute_units=units, function_name=None if functions == ["main"] else name
            )
            for name in functions
        }
        self._first = functions[0]
        self.reset()
        self.device = f"CoreML ({units.name})"

    def run(self, function: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._functions[function].predict(_device_arrays(inputs), state=self._state)
        return found

    def reset(self) -> None:
        self._state = self._functions[self._first].make_state()

    def close(self) -> None:
        self._functions, self._state = {}, None


def _coremltools() -> ModuleType:
    try:
        return import_coremltools()
    except ImportError:
        raise EdgeVLMError(
            f"The CoreML runtime on macOS needs the package coremltools: {install_hint('coreml')}."
        ) from None


def _device_arrays(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x if x.dtype == np.int32 else x.astype(np.float16) for name, x in inputs.items()}
