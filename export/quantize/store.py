"""Quantized tensors kept in memory and in files, so that a model is rounded once for every target and for the gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgevlm.bundle.qtensor import QTensor

_PARTS = ("codes", "scale", "palette")


_IN_MEMORY = 64 << 20  # bytes; a small model never meets the disk


class TensorStore:
    """`QTensor`s by name: the first in memory, the rest in `folder`, which has to exist; a byte per weight."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kinds: dict[str, str] = {}
        self._held: dict[str, QTensor] = {}
        self._room = _IN_MEMORY

    def __contains__(self, name: object) -> bool:
        return name in self._kinds

    def names(self) -> list[str]:
        return list(self._kinds)

    def kind(self, name: str) -> str | None:
        return self._kinds.get(name)

    def put(self, name: str, tensor: QTensor) -> None:
        """Keep a tensor, in the place of an earlier one of that name."""
        size = _size(tensor)
        self._room += _size(self._held.pop(name, None))
        self._kinds[name] = tensor.kind
        if size <= self._room:
            self._held[name] = tensor
            self._room -= size
            return
        for part in _PARTS:
            if (values := getattr(tensor, part)) is not None:
                np.save(self._path(name, part), values)

    def quantized(self, name: str) -> QTensor:
        if name in self._held:
            return self._held[name]
        found = {part: np.load(path) for part in _PARTS if (path := self._path(name, part)).exists()}
        return QTensor(self._kinds[name], **found)

    def _path(self, name: str, part: str) -> Path:
        return self.folder / f"{name.replace('/', '-')}.{part}.npy"


def _size(tensor: QTensor | None) -> int:
    return sum(values.nbytes for part in _PARTS if (values := getattr(tensor, part, None)) is not None)
