"""Weight bytes beside the graphs: data files that several graphs point into, and the table of what lies where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edgevlm.bundle.qtensor import QTensor

PAGE = 4096  # large tensors start on a page, so that a runtime can map them


@dataclass(frozen=True)
class Region:
    """Bytes in an external data file of the target folder."""

    location: str
    offset: int
    length: int

    def part(self, offset: int, length: int) -> Region:
        return Region(self.location, self.offset + offset, length)


class DataFile:
    """One external data file, written front to back."""

    def __init__(self, folder: Path, location: str) -> None:
        self.location = location
        self._file: BinaryIO = (folder / location).open("wb")

    def append(self, *arrays: npt.NDArray[Any]) -> Region:
        """Write arrays behind each other, without gaps, as one region."""
        length = sum(array.nbytes for array in arrays)
        alignment = PAGE if length >= PAGE else 16
        self._file.write(b"\0" * (-self._file.tell() % alignment))
        start = self._file.tell()
        for array in arrays:
            self._file.write(memoryview(np.ascontiguousarray(array)).cast("B"))
        return Region(self.location, start, length)

    def close(self) -> None:
        self._file.close()


def pack_rows(tensor: QTensor) -> npt.NDArray[np.uint8]:
    """Codes as MatMulNBits and DequantizeLinear hold them: offset to unsigned, int4 two to a byte, low nibble first.

    Returns (N, K / 2) for int4 with zero point 8 and (N, K) for int8 with zero point 128.
    """
    if tensor.kind == "int4":
        nibbles = (tensor.codes + np.int8(8)).astype(np.uint8)
        return nibbles[:, 0::2] | (nibbles[:, 1::2] << np.uint8(4))
    return np.asarray(tensor.codes.view(np.uint8) ^ 0x80, dtype=np.uint8)


class TensorTable:
    """weights.json: where each canonical tensor's bytes lie, so that anyone can read back what ships."""

    def __init__(self, folder_name: str) -> None:
        self.folder_name = folder_name
        self.prefix = ""  # before the names of what is added from now on
        self.entries: dict[str, dict[str, Any]] = {}

    def add(
        self,
        name: str,
        tensor: QTensor,
        codes: Region,
        layout: str,
        *,
        stride: int = 0,
        start: int = 0,
        scale: Region | None = None,
    ) -> None:
        """`layout`: "rows" (N, K), or "columns" start..start+N of a (K, stride) matrix."""
        entry: dict[str, Any] = {
            "kind": tensor.kind,
            "shape": list(tensor.codes.shape),
            "file": f"{self.folder_name}/{codes.location}",
            "codes": {"offset": codes.offset, "layout": layout},
        }
        if layout == "columns":
            entry["codes"] |= {"stride": stride, "start": start}
        if scale is not None and tensor.scale is not None:
            per_row = scale.length == 4 * tensor.codes.shape[0]
            entry["scale"] = {"offset": scale.offset, "layout": "row" if per_row else "block"}
        self.entries[self.prefix + name] = entry
