"""embedding.bin: the token embeddings as one file that a host maps into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.bundle.qtensor import QTensor
from edgevlm.export.coreml_.store import half
from edgevlm.runtimes.coreml.table import ALIGN


def write_embedding(path: Path, table: QTensor, name: str) -> dict[str, Any]:
    """Write the table `name` of tokens to `path`: codes row by row, then fp16 scales at a multiple of ALIGN.

    int4 codes are two's complement, two to a byte, the first in the low half. Returns kind, shape and offsets.
    """
    rows, columns = table.codes.shape
    kind = "fp16" if table.scale is None else table.kind
    with path.open("wb") as stream:
        step = max(1, (8 << 20) // columns)
        for start in range(0, rows, step):
            part = table.codes[start : start + step]
            stream.write(_table_bytes(part, kind, name).tobytes())
        entry: dict[str, Any] = {"kind": kind, "shape": [rows, columns], "codes": [0, stream.tell()]}
        if table.scale is not None:
            stream.write(bytes(-stream.tell() % ALIGN))
            start = stream.tell()
            stream.write(np.ascontiguousarray(table.scale).tobytes())
            entry["scale"] = [start, stream.tell() - start]
            entry["scale_shape"] = list(table.scale.shape)
    return entry


def _table_bytes(codes: npt.NDArray[Any], kind: str, name: str) -> npt.NDArray[Any]:
    if kind == "fp16":
        return half(codes, name)
    codes = codes.astype(np.int8, copy=False)
    if kind == "int4":
        nibbles = codes.view(np.uint8) & 15
        return nibbles[:, ::2] | nibbles[:, 1::2] << 4
    return codes
