"""Which int8 matrices of an encoder keep fp16, because what flows into them has outliers that int8 would pay for.

One range of an engine's 8-bit activations serves a whole picture, and one scale a whole row of weights: a few channels
far beyond the others, as many trained vision transformers have them (arXiv 2309.16588), leave the others no resolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edgevlm.bundle.qtensor import BLOCK
from edgevlm.export.quantize.recipe import Recipe
from edgevlm.export.quantize.round import quantize
from edgevlm.inputs.preprocess import normalize
from edgevlm.models.eager import EagerOps
from edgevlm.models.model import image_features
from edgevlm.models.ops import Weights
from edgevlm.types import F32, U8
from edgevlm.verify.reference import Reference

# Least cosine of a picture's features with weights and activations rounded: 0.9997 without outliers, and the gate wants
# 0.999 of each by itself.
LEAST = 0.9993
# Error of a product from which on its matrices keep fp16, see `product_error`: tried in turn, until the features are
# good. It is 0.01 to 0.08 without outliers, and 0.1 to 1 where channels 30 times as large as the others flow into it.
LARGEST = (0.1, 0.025, 0.0)
_ROWS = 256  # of activations that errors are measured on


def keep_fine(recipe: Recipe, original: Reference, view: U8) -> Recipe:
    """`recipe`, and where its encoder departs too far on a view, with the int8 matrices at fault in `outliers`.

    original: the model before rounding, which keeps the view's features: the gate asks for them again. The view is
    encoded once more in numpy, and up to five times where outliers are found; never where nothing of the encoder is
    int8. All of the encoder keeps fp16 where less is not enough.
    """
    if "int8" not in (recipe.vision.kind, recipe.projector.kind):
        return recipe
    spec, weights = original.spec, original.weights
    feeds = spec.vision.feeds(normalize(view, original.image))

    def encode(ops: EagerOps) -> F32:
        features: F32 = image_features(ops, spec, dict(feeds))[0]
        return features

    (wanted,) = original.features([view])

    def good(recipe: Recipe) -> bool:
        return _lowest_cosine(encode(_RoundingOps(weights, recipe, feeds)), wanted) >= LEAST

    if good(recipe):
        return recipe
    measured = _MeasuringOps(weights, recipe, feeds)
    encode(measured)
    for largest in LARGEST:
        recipe = replace(recipe, outliers=tuple(name for name, e in measured.errors.items() if not e <= largest))
        if good(recipe):
            break
    return recipe


class _MeasuringOps(EagerOps):
    """The original, with the error that rounding would bring into each int8 product."""

    def __init__(self, weights: Weights, recipe: Recipe, feeds: Mapping[str, Any]) -> None:
        super().__init__(weights, inputs=feeds)
        self.recipe, self.errors = recipe, dict[str, float]()

    def linear(self, x: F32, *maps: tuple[str, int], bias: bool = False) -> list[F32]:
        names = [f"{name}.weight" for name, _ in maps]
        if self.recipe.form(names[0]).kind == "int8":
            matrix = np.concatenate([self._weight(name) for name in names])
            error = product_error(x, matrix, self.recipe.form(names[0]).dynamic)
            self.errors |= dict.fromkeys(names, error)  # one product has one form
        return super().linear(x, *maps, bias=bias)


class _RoundingOps(EagerOps):
    """The encoder with int8 weights and activations as an engine rounds them."""

    def __init__(self, weights: Weights, recipe: Recipe, feeds: Mapping[str, Any]) -> None:
        super().__init__(weights, inputs=feeds)
        self.recipe = recipe

    def linear(self, x: F32, *maps: tuple[str, int], bias: bool = False) -> list[F32]:
        form = self.recipe.form(f"{maps[0][0]}.weight")
        if form.kind != "int8":
            return super().linear(x, *maps, bias=bias)
        x = _round(x, form.dynamic)
        matrices = [quantize(self._weight(f"{name}.weight"), "int8", name).dequantize() for name, _ in maps]
        outs = [x @ matrix.T for matrix in matrices]
        return [out + self._weight(f"{name}.bias") for out, (name, _) in zip(outs, maps, strict=True)] if bias else outs


def product_error(x: F32, matrix: F32, dynamic: bool) -> float:
    """Root mean square of what int8 adds to x (.., K) times `matrix` (N, K) transposed, relative to the result.

    Each row of the result counts the same, and each channel: the larger of the two. dynamic: see `Form`.
    """
    flat = x.reshape(-1, x.shape[-1])
    some = np.arange(0, len(flat), max(1, len(flat) // _ROWS))
    wanted = flat[some] @ matrix.T
    error = _round(flat, dynamic)[some] @ quantize(matrix, "int8", "").dequantize().T - wanted

    def share(axis: int) -> float:
        whole = np.square(wanted, dtype=np.float64).sum(axis)
        parts = np.divide(
            np.square(error, dtype=np.float64).sum(axis), whole, out=np.zeros_like(whole), where=whole > 0
        )
        return float(np.sqrt(parts.mean()))

    return max(share(0), share(1))


def _round(x: F32, dynamic: bool) -> F32:
    """x (.., K) as an engine multiplies it: whole with one range, zero included, or with a scale per block of 32.

    DynamicQuantizeLinear in the ONNX specification; MatMulNBits with accuracy level 4 in onnxruntime.
    """
    if dynamic:
        low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
        scale = np.float32(high - low) / 255 or np.float32(1)
        zero = np.rint(-low / scale)
        return np.asarray((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale, np.float32)
    blocks = x.reshape(-1, BLOCK)
    scale = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    return np.asarray(np.rint(blocks / np.where(scale > 0, scale, 1)) * scale, np.float32).reshape(x.shape)


def _lowest_cosine(ours: F32, theirs: F32) -> float:
    norms = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    cosines = (ours * theirs).sum(-1) / np.where(norms > 0, norms, 1)
    return float(cosines.min())
