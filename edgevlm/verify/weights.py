"""The gate on stored weights: do the files hold the quantizer's result, and if not, how do they differ?"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from edgevlm.bundle.manifest import Bundle
from edgevlm.bundle.qtensor import PREFILL, QTensor
from edgevlm.bundle.region import region_dtype, region_file, region_shapes
from edgevlm.bundle.weights import ShippedWeights
from edgevlm.models.ops import Weights
from edgevlm.runtimes.gguf import GgufWeights, gguf_files
from edgevlm.verify.report import Row

_RESEMBLES = 0.95  # cosine from which a matrix counts as the transposed other


class ExpectedWeights(Weights, Protocol):
    """The quantizer's own result for the original weights."""

    def names(self) -> list[str]: ...
    def quantized(self, name: str) -> QTensor: ...


class StoredWeights(Protocol):
    """A target's matrices read back from its files."""

    def names(self) -> list[str]: ...
    def quantized(self, name: str) -> QTensor: ...


def check_weights(shipped: ShippedWeights, expected: ExpectedWeights) -> Row:
    """Every tensor of the original is in the ONNX files, as the quantizer made it."""
    wrong = []
    names = expected.names()
    for name in names:
        if name not in shipped:
            wrong.append((name, "missing"))
        elif found := difference(shipped.quantized(name), expected.quantized(name)):
            wrong.append((name, found))
    return _row("onnx", wrong, len(names))


def check_stored(target: str, stored: StoredWeights, expected: ExpectedWeights) -> Row:
    """Every matrix that a target keeps in the shared form has the quantizer's codes and scales."""
    names = [name for name in stored.names() if name in expected]
    found = ((name, difference(stored.quantized(name), expected.quantized(name))) for name in names)
    return _row(target, [(name, how) for name, how in found if how], len(names))


def gguf_weights(bundle: Bundle) -> GgufWeights:
    """The weights of the GGUF pair under their canonical names."""
    return GgufWeights(*gguf_files(bundle), bundle.manifest.spec)


def check_gguf(pair: GgufWeights, expected: ExpectedWeights) -> Row:
    """Every matrix and vector of the pair, dequantized, has the bits of the quantizer's, or of their fp16 (`held`)."""
    wrong = []
    names = [name for name in expected.names() if not name.startswith(PREFILL) and pair.should_hold(name)]
    for name in names:
        if name not in pair:
            wrong.append((name, "missing"))
            continue
        ours, theirs = pair.read(name), pair.held(name, expected.read(name))
        if ours.tobytes() != theirs.tobytes():
            wrong.append((name, _values_differ(ours, theirs.reshape(ours.shape)) or "signs of zero differ"))
    return _row("gguf", wrong, len(names))


def check_region(bundle: Bundle, expected: ExpectedWeights) -> Row:
    """Every tensor of the region head's file has the original's values, in the type that the recipe asks for."""
    names, file, wrong = list(region_shapes(bundle.manifest.spec)), region_file(bundle), list[tuple[str, str]]()
    dtype = region_dtype(bundle.manifest.recipe["quantize"])
    for name in names:
        ours, theirs = file.read(name), expected.quantized(name).codes.astype(dtype).astype(np.float32)
        if file.dtype(name) != dtype:
            wrong.append((name, f"stored as {file.dtype(name)}, expected {dtype}"))
        elif found := _values_differ(ours, theirs):
            wrong.append((name, found))
    return _row("region head", wrong, len(names), "tensors that differ from the original's")


def _row(target: str, wrong: list[tuple[str, str]], count: int, check: str = "weights that differ") -> Row:
    note = f"first: {wrong[0][0]}: {wrong[0][1]}" if wrong else f"{count} tensors"
    where = wrong[0][0] if wrong else ""
    return Row(target, check, len(wrong), 0, not wrong, note, "numbers", where)


def difference(ours: QTensor, theirs: QTensor) -> str:
    """How a stored tensor differs from the expected one, in words; empty where it does not."""
    if ours.kind != theirs.kind:
        return f"stored as {ours.kind}, expected {theirs.kind}"
    if ours.codes.size != theirs.codes.size:
        return f"shape {ours.codes.shape}, expected {theirs.codes.shape}"
    expected = theirs.codes.reshape(ours.codes.shape)
    if not np.array_equal(ours.codes, expected):
        turned = ours.codes.ndim == 2 and _resembles(ours.dequantize().T, theirs.dequantize())
        return "transposed" if turned else _values_differ(ours.codes, expected)
    if ours.palette is not None:  # more of them than expected, where matrices on top of each other share rows
        return _values_differ(ours.dequantize(), theirs.dequantize())
    if (ours.scale is None) != (theirs.scale is None):
        return "scales missing" if ours.scale is None else "scales that should not be there"
    if ours.scale is None or theirs.scale is None or np.array_equal(ours.scale, theirs.scale):
        return ""
    if ours.scale.shape != theirs.scale.shape:
        return f"scales of shape {ours.scale.shape}, expected {theirs.scale.shape}"
    places = np.argwhere(ours.scale != theirs.scale)
    first = f"row {places[0][0]}, block {places[0][1]}"
    moved = np.array_equal(np.sort(ours.scale, axis=None), np.sort(theirs.scale, axis=None))
    return f"{len(places)} scales {'swapped' if moved else 'differ'}, first in {first}"


def _values_differ(ours: np.ndarray, theirs: np.ndarray) -> str:  # type: ignore[type-arg]
    if ours.ndim == 2 and _resembles(ours.T, theirs) and not np.array_equal(ours, theirs):
        return "transposed"
    places = np.argwhere(ours != theirs)
    return f"{len(places)} of {ours.size} values differ, first at {tuple(map(int, places[0]))}" if len(places) else ""


def _resembles(ours: np.ndarray, theirs: np.ndarray) -> bool:  # type: ignore[type-arg]
    if ours.shape != theirs.shape:
        return False
    a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    return float(a @ b) > _RESEMBLES * float(np.linalg.norm(a) * np.linalg.norm(b))


class GgufValues:
    """A GGUF pair, which is read as float32 values, as `StoredWeights`."""

    def __init__(self, weights: Weights, names: list[str]) -> None:
        self._weights, self._names = weights, [name for name in names if name in weights]

    def names(self) -> list[str]:
        return self._names

    def quantized(self, name: str) -> QTensor:
        return QTensor("fp32", self._weights.read(name))
