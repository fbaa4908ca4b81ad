"""Quantized tensors kept in files, so that a model is rounded once for every target and for the gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgevlm.bundle.qtensor import QTensor
from edgevlm.errors import EdgeVLMError

_PARTS = ("codes", "scale", "palette")


class TensorStore:
    """`QTensor`s by name in `folder`, which has to exist: about one byte per weight."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kinds: dict[str, str] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._kinds

    def names(self) -> list[str]:
        return list(self._kinds)

    def kind(self, name: str) -> str | None:
        return self._kinds.get(name)

    def put(self, name: str, tensor: QTensor) -> None:
        """Keep a tensor, in the place of an earlier one of that name; EdgeVLMError where the disk is full."""
        try:
            for part in _PARTS:
                if (values := getattr(tensor, part)) is not None:
                    np.save(self._path(name, part), values)
        except OSError as error:
            raise EdgeVLMError(
                f"Quantized weights cannot be kept in '{self.folder}' ({error.strerror}): they take a byte per weight "
                "beside the bundle; free some space or choose another output folder."
            ) from None
        self._kinds[name] = tensor.kind

    def quantized(self, name: str) -> QTensor:
        found = {part: np.load(path) for part in _PARTS if (path := self._path(name, part)).exists()}
        return QTensor(self._kinds[name], **found)

    def _path(self, name: str, part: str) -> Path:
        return self.folder / f"{name.replace('/', '-')}.{part}.npy"
