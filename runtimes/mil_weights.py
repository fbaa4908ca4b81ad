"""Read the quantized matrices of a bundle's CoreML packages back, to hold them against other targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevlm.errors import EdgeVLMError
from edgevlm.qtensor import QTensor
from edgevlm.runtimes.mil_file import Blob, MilOp, MilPackage, open_package

if TYPE_CHECKING:
    from edgevlm.bundle import Bundle


class CoreMLWeights:
    """Codes and scales by canonical name, through the places that the manifest gives. Nothing is kept."""

    def __init__(self, bundle: Bundle) -> None:
        target = bundle.manifest.targets.get("coreml") or {}
        self._places: dict[str, Any] = target.get("weights", {})
        self._packages: dict[str, MilPackage] = {}
        self._ops: dict[str, dict[str, MilOp]] = {}
        for file in sorted({place["package"] for place in self._places.values()}):
            package = open_package(bundle.path(f"{file}/Manifest.json").parent)
            self._packages[file] = package
            self._ops[file] = {op.name: op for function in package.functions.values() for op in function.ops}

    def names(self) -> list[str]:
        return list(self._places)

    def quantized(self, name: str) -> QTensor:
        """The matrix (N, K) as stored; what is not quantized comes as fp16."""
        try:
            place = self._places[name]
            parts = [self._part(place["package"], part) for part in place["parts"]]
        except (KeyError, IndexError, TypeError) as error:
            raise EdgeVLMError(
                f"The CoreML packages do not hold '{name}' ({error}): export the bundle again."
            ) from None
        codes = np.concatenate([codes for codes, _ in parts])
        scales = [scale for _, scale in parts if scale is not None]
        return QTensor(place["parts"][0]["kind"], codes, np.concatenate(scales) if scales else None)

    def _part(
        self, file: str, part: dict[str, Any]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.float16] | None]:
        op, rows = self._ops[file][part["op"]], slice(*part["rows"])
        if op.type == "const":
            return self._matrix(file, op.attributes["val"])[rows], None
        data, scale = (self._matrix(file, op.inputs[name][0]) for name in ("data", "scale"))
        return data[rows], scale[rows].astype(np.float16)

    def _matrix(self, file: str, value: Any) -> npt.NDArray[Any]:
        """(N, K), from a matrix or the kernel (N, K, 1, 1) of a 1x1 convolution."""
        array: npt.NDArray[Any] = self._packages[file].read_blob(value) if isinstance(value, Blob) else value
        return array.reshape(array.shape[:2])
