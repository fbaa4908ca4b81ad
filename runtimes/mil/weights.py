"""Read the quantized matrices of a bundle's CoreML packages back, to hold them against other targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevlm.bundle.manifest import target_of
from edgevlm.bundle.qtensor import PALETTES, QTensor
from edgevlm.bundle.targets import CoreMLRows, CoreMLTarget
from edgevlm.errors import EdgeVLMError
from edgevlm.runtimes.mil.blob import Blob
from edgevlm.runtimes.mil.file import MilOp, MilPackage, open_package

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle


class CoreMLWeights:
    """Codes and scales by canonical name, through the places that the manifest gives. Nothing is kept."""

    def __init__(self, bundle: Bundle) -> None:
        self._places = target_of(bundle, CoreMLTarget).weights
        self._packages: dict[str, MilPackage] = {}
        self._ops: dict[str, dict[str, MilOp]] = {}
        for file in sorted({place.package for place in self._places.values()}):
            package = open_package(bundle.package(file))
            self._packages[file] = package
            self._ops[file] = {op.name: op for function in package.functions.values() for op in function.ops}

    def names(self) -> list[str]:
        return list(self._places)

    def quantized(self, name: str) -> QTensor:
        """The matrix (N, K) as stored; what is not quantized comes as fp16."""
        try:
            place = self._places[name]
            parts = [self._part(place.package, part) for part in place.parts]
        except (KeyError, IndexError, TypeError) as error:
            raise EdgeVLMError(
                f"The CoreML packages do not hold '{name}' ({error}): export the bundle again."
            ) from None
        kind, codes = place.parts[0].kind, np.concatenate([codes for codes, _ in parts])
        given = [values for _, values in parts if values is not None]
        values = np.concatenate(given) if given else None
        return QTensor(kind, codes, palette=values) if kind in PALETTES else QTensor(kind, codes, values)

    def _part(self, file: str, part: CoreMLRows) -> tuple[npt.NDArray[Any], npt.NDArray[np.float16] | None]:
        """Codes, and the scales or palettes of the part's rows."""
        op, rows = self._ops[file][part.op], slice(*part.rows)
        if op.type == "const":
            return self._matrix(file, op.attributes["val"])[rows], None
        if op.type == "constexpr_lut_to_dense":
            codes, palettes = (self._read(file, op.inputs[name][0]) for name in ("indices", "lut"))
            group = len(codes) // len(palettes)
            palettes = palettes.reshape(len(palettes), -1)[rows.start // group : rows.stop // group]
            return codes.reshape(codes.shape[:2])[rows], palettes.astype(np.float16)
        data, scale = (self._matrix(file, op.inputs[name][0]) for name in ("data", "scale"))
        return data[rows], scale[rows].astype(np.float16)

    def _matrix(self, file: str, value: Any) -> npt.NDArray[Any]:
        """(N, K), from a matrix or the kernel (N, K, 1, 1) of a 1x1 convolution."""
        array = self._read(file, value)
        return array.reshape(array.shape[:2])

    def _read(self, file: str, value: Any) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = self._packages[file].read_blob(value) if isinstance(value, Blob) else value
        return array
