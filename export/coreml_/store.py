"""Weights on their way into CoreML packages: matrices stacked as one operation holds them, the rest in fp16."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.bundle.qtensor import QTensor
from edgevlm.errors import EdgeVLMError
from edgevlm.models.model import ModelSpec
from edgevlm.models.ops import Weights
from edgevlm.models.record import weight_tree

F16 = npt.NDArray[np.float16]
FP16_MAX = 65504.0


@dataclass
class WeightStore:
    """Weights on their way into one package: read once, shared by its functions, and where each went.

    `places` maps a canonical name to the operation that holds it and its rows there, for the manifest.
    """

    weights: Weights
    quantized: Callable[[str], QTensor]
    arrays: dict[str, dict[str, Any]] = field(default_factory=dict)
    places: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def matrix(self, names: tuple[str, ...], op: str, rows: slice | None = None) -> dict[str, Any]:
        """The matrices of `names` on top of each other, or the `rows` of one: "kind", "data", "scale" or "palette"."""
        if op not in self.arrays:
            tensors = [self.quantized(f"{name}.weight") for name in names]
            if len({tensor.kind in ("fp32", "fp16") or tensor.kind for tensor in tensors}) > 1:
                raise EdgeVLMError(
                    f"{', '.join(names)} are one CoreML operation and need one form: quantize them alike."
                )
            take = rows or slice(None)
            packed = self.arrays[op] = _pack(tensors, names, take)
            start = 0
            for name, tensor in zip(names, tensors, strict=True):
                count = len(range(*take.indices(tensor.codes.shape[0])))
                place = {"op": op, "rows": [start, start + count], "kind": packed["kind"]}
                self.places.setdefault(f"{name}.weight", []).append(place)
                start += count
        return self.arrays[op]

    def vector(self, name: str) -> F16:
        return half(self.weights.read(name), name)

    def bound(self, name: str) -> F16:
        """A bound on values that fp16 holds."""
        return np.clip(self.weights.read(name), -FP16_MAX, FP16_MAX).astype(np.float16)


class Unread(WeightStore):
    """Weights without values, in fp16, for functions that are built to see whether they can be: no memory is taken."""

    def __init__(self, spec: ModelSpec) -> None:
        self._tree = weight_tree(spec)

    def matrix(self, names: tuple[str, ...], op: str, rows: slice | None = None) -> dict[str, Any]:
        shapes = [self._tree[f"{name}.weight"].shape for name in names]
        height, width = sum(shape[0] for shape in shapes), shapes[0][1]
        height = len(range(*rows.indices(height))) if rows else height
        return {"kind": "fp16", "data": np.broadcast_to(np.float16(0), (height, width))}

    def vector(self, name: str) -> F16:
        return np.broadcast_to(np.float16(0), self._tree[name].shape)

    def bound(self, name: str) -> F16:
        return self.vector(name)


def half(values: npt.NDArray[Any], name: str) -> F16:
    """fp16 for a program that computes in fp16; EdgeVLMError where a value does not fit."""
    if values.size and not float(np.abs(values).max()) <= FP16_MAX:
        raise EdgeVLMError(
            f"The weight '{name}' reaches {float(np.abs(values).max()):.3g}, more than CoreML's fp16 holds "
            f"({FP16_MAX:g}): use the ONNX target for this model."
        )
    return values.astype(np.float16)


def _pack(tensors: list[QTensor], names: tuple[str, ...], rows: slice) -> dict[str, Any]:
    if tensors[0].palette is not None:
        assert rows == slice(None), "heads, which may be cut, hold no palettes"
        return {"kind": tensors[0].kind, "data": np.concatenate([t.codes for t in tensors]), "palette": _stack(tensors)}
    if tensors[0].scale is None:
        halves = [half(tensor.codes, name)[rows] for tensor, name in zip(tensors, names, strict=True)]
        return {"kind": "fp16", "data": np.concatenate(halves)}
    scales = [tensor.scale[rows] for tensor in tensors if tensor.scale is not None]
    codes = np.concatenate([tensor.codes[rows].astype(np.int8, copy=False) for tensor in tensors])
    return {"kind": tensors[0].kind, "data": codes, "scale": np.concatenate(scales)}


def _stack(tensors: list[QTensor]) -> F16:
    """The palettes of matrices on top of each other, repeated where one's serve more rows than another's."""
    palettes = [(tensor.palette, len(tensor.codes)) for tensor in tensors if tensor.palette is not None]
    group = math.gcd(*(rows // len(palette) for palette, rows in palettes))
    return np.concatenate([np.repeat(palette, rows // len(palette) // group, axis=0) for palette, rows in palettes])
