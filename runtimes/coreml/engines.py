"""What executes the packages: Apple's CoreML on macOS, elsewhere the evaluator in numpy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgevlm.errors import EdgeVLMError
from edgevlm.runtimes.mil.evaluator import MilEvaluator, Observer, State

KEPT_TILES = 32
_COMPUTE_UNITS = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "npu": "CPU_AND_NE"}


class Engine(Protocol):
    """Runs the two packages; holds the decoder's state."""

    device: str

    def encode(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]: ...
    def decode(self, function: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]: ...
    def close(self) -> None: ...


class EvaluatorEngine:
    """The packages on numpy. `observer` sees every value before it is stored."""

    def __init__(self, vision: Path, decoder: Path, function: str, storage: str) -> None:
        self.vision, self.decoder = MilEvaluator(vision, storage), MilEvaluator(decoder, storage)
        self.state: State = self.decoder.make_state(function)
        self.observer: Observer | None = None
        self._tiles: dict[bytes, Mapping[str, Any]] = {}  # a tile takes seconds, and the gate asks for some often
        self.device = f"CPU (evaluator in numpy, {storage} storage)"

    def encode(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.observer is not None:
            return self.vision.run(inputs, observer=self.observer)
        key = hashlib.sha256(b"".join(np.ascontiguousarray(value).tobytes() for value in inputs.values())).digest()
        if key not in self._tiles:
            if len(self._tiles) >= KEPT_TILES:
                self._tiles.pop(next(iter(self._tiles)))
            self._tiles[key] = self.vision.run(inputs)
        return self._tiles[key]

    def decode(self, function: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.decoder.run(inputs, self.state, function, self.observer)

    def close(self) -> None:
        self.state, self._tiles = {}, {}


class PredictEngine:
    """The packages on Apple's CoreML, through coremltools. Written from its documentation; macOS only."""

    def __init__(self, vision: Path, decoder: Path, functions: list[str], device: str) -> None:
        try:
            import coremltools as ct
        except ImportError:
            raise EdgeVLMError(
                "The CoreML runtime on macOS needs the package coremltools: pip install 'edgevlm[coreml]'."
            ) from None
        units = getattr(ct.ComputeUnit, _COMPUTE_UNITS[device])
        self._vision = ct.models.MLModel(str(vision), compute_units=units)
        self._functions = {
            name: ct.models.MLModel(
                str(decoder), compute_units=units, function_name=None if functions == ["main"] else name
            )
            for name in functions
        }
        self._state = self._functions[functions[0]].make_state()
        self.device = f"CoreML ({units.name})"

    def encode(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._vision.predict(_device_arrays(inputs))
        return found

    def decode(self, function: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._functions[function].predict(_device_arrays(inputs), state=self._state)
        return found

    def close(self) -> None:
        self._functions, self._state = {}, None


def _device_arrays(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x if x.dtype == np.int32 else x.astype(np.float16) for name, x in inputs.items()}
