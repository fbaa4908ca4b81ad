"""The record of a calibration in the manifest, by which its files can be checked later, without the pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgevlm.bundle.qtensor import PREFILL, QTensor
from edgevlm.errors import EdgeVLMError
from edgevlm.types import F32
from edgevlm.verify.targets import JUDGES
from edgevlm.verify.weights import ExpectedWeights, StoredWeights

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle
    from edgevlm.export.calibrate.solve import CalibratedStore


def digest(values: F32) -> str:
    """sha256 of a tensor's float32 values, which are the same from every container."""
    return hashlib.sha256(np.ascontiguousarray(values, "<f4").tobytes()).hexdigest()


def recorded(expected: ExpectedWeights, found: CalibratedStore) -> dict[str, str]:
    """`digest` of every tensor that the calibration chose or folded, for the manifest: these cannot be recomputed."""
    touched = {*found.names(), *found.fold.columns, *found.fold.rows}
    names = [name for name in expected.names() if name.removeprefix(PREFILL) in touched]
    return {name: digest(expected.quantized(name).dequantize()) for name in names}


class RecordedWeights:
    """The calibrated tensors of a bundle, by their recorded digests.

    A calibration depends on pictures that need not be there any more, and on the order of float sums in the BLAS of the
    machine that made it, so that it is not repeated: a tensor of the files counts as the calibration's own where its
    values have the recorded digest. Others are not held here, and then the quantizer's plain result differs from them.
    """

    def __init__(self, digests: dict[str, str], stored: Sequence[StoredWeights]) -> None:
        self._digests, self._stored = digests, stored
        self._names = [set(each.names()) for each in stored]
        self._last: tuple[str, QTensor | None] = "", None

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        self._last = name, self._find(name)
        return self._last[1] is not None

    def quantized(self, name: str) -> QTensor:
        tensor = self._last[1] if self._last[0] == name else self._find(name)
        assert tensor is not None
        return tensor

    def _find(self, name: str) -> QTensor | None:
        wanted = self._digests.get(name)
        for names, stored in zip(self._names, self._stored, strict=True):
            if wanted is not None and name in names:
                tensor = stored.quantized(name)
                if digest(tensor.dequantize()) == wanted:
                    return tensor
        return None


def open_recorded(bundle: Bundle) -> RecordedWeights | None:
    """The calibration that the manifest of `bundle` records, if there is one; EdgeVLMError where it is malformed."""
    report = bundle.manifest.calibration
    if report is None:
        return None
    digests = report.get("tensors")
    if not isinstance(digests, dict) or not all(isinstance(value, str) for value in digests.values()):
        raise EdgeVLMError(f"The manifest of '{bundle.folder}' has a calibration without tensors: export it again.")
    stored = [JUDGES[target].stored(bundle, list(digests)) for target in bundle.manifest.targets]
    return RecordedWeights(digests, stored)
