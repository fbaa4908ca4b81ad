"""A model as it ships: every matrix in the form of a recipe, rounded once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from edgevlm.bundle.qtensor import PREFILL, QTensor
from edgevlm.checkpoint.checkpoint import Weights
from edgevlm.export.quantize.recipe import Recipe
from edgevlm.export.quantize.round import quantize
from edgevlm.export.quantize.store import TensorStore
from edgevlm.types import F32, I64


class CalibratedWeights(Protocol):
    """What a calibration found, by weight."""

    def __contains__(self, name: object) -> bool: ...
    def quantized(self, name: str) -> QTensor: ...


@dataclass(frozen=True)
class QuantizedModel:
    """The quantizer's result for the original, rounded or calibrated: the files must hold exactly this.

    weights: the original's, as the calibration folded them where there is one. found: what a calibration chose.
    store: keeps roundings for the next target and the gate; None rounds again each time.
    """

    weights: Weights
    recipe: Recipe
    found: CalibratedWeights | None = None
    store: TensorStore | None = None

    def names(self) -> list[str]:
        names = self.weights.names()
        if self.recipe.prefill is not None:
            names += [PREFILL + name for name in names if name.startswith("decoder.layers.")]
        return names

    def quantized(self, name: str) -> QTensor:
        if self.found is not None and name in self.found:
            return self.found.quantized(name)
        if self.store is None:
            return self._round(name)
        if name not in self.store:
            tensor = self._round(name)
            if tensor.scale is None and tensor.palette is None:
                return tensor  # a float tensor is as quickly read from the checkpoint
            self.store.put(name, tensor)
            return tensor
        return self.store.quantized(name)

    def _round(self, name: str) -> QTensor:
        plain, recipe = name.removeprefix(PREFILL), self.recipe
        if plain != name and recipe.prefill is not None:
            recipe = replace(recipe, decoder=recipe.prefill)
        kind = recipe.form(plain).kind if self.weights.is_linear(plain) else "fp32"
        return quantize(self.weights.read(plain), kind, plain)

    def read(self, name: str) -> F32:
        return self.quantized(name).dequantize().reshape(self.weights.shape(name))

    def rows(self, name: str, ids: I64) -> F32:
        """Rows `ids` (S,) of the embedding table (N, K), dequantized: (S, K)."""
        whole = self.quantized(name)
        return QTensor(whole.kind, whole.codes[ids], None if whole.scale is None else whole.scale[ids]).dequantize()

    def __contains__(self, name: object) -> bool:
        return name in self.weights
