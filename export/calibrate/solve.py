"""Calibration: one pass through the model, layer by layer, choosing codes and scales by each layer's inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgevlm.bundle.qtensor import QTensor
from edgevlm.checkpoint.checkpoint import Weights
from edgevlm.export.calibrate.awq import Fold, FoldedWeights, attention_of, choose, shared, source_of
from edgevlm.export.calibrate.batch import Batch
from edgevlm.export.calibrate.gptq import gptq, pieces
from edgevlm.export.calibrate.play import PackedOps, batch_embeddings, batch_features
from edgevlm.export.quantize.recipe import Recipe
from edgevlm.export.quantize.round import LIMITS, half, quantize, search
from edgevlm.export.quantize.store import TensorStore
from edgevlm.models.decoder import decoder
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import head_name
from edgevlm.types import F32, I64, Progress

METHODS = ("rtn", "search", "awq", "gptq", "awq+gptq")
# Shares of image tokens, other prompt tokens and answer tokens in the decoder's statistics. Image tokens are most of a
# prompt and much alike (VLMQ, arXiv 2508.03351): counted one by one, they would drown the rest.
SHARES = (0.25, 0.25, 0.5)
_ROWS = 2048


class CalibratedStore(TensorStore):
    """The quantizer's results for a model, kept in files of `folder`: for all targets, and for the gate.

    `weights` are the original's; `original` below gives them as the folded model has them.
    """

    def __init__(self, weights: Weights, folder: Path) -> None:
        super().__init__(folder)
        self.weights, self.fold = weights, Fold()

    @property
    def original(self) -> Weights:
        return FoldedWeights(self.weights, self.fold)

    def scale_rows(self, name: str, factor: F32) -> None:
        """Multiply the rows of the tensor `name`, quantized or not yet, and of its bias."""
        for tensor in (f"{name}.weight", f"{name}.bias"):
            if tensor in self.weights:
                self.fold.rows[tensor] = factor * self.fold.rows.get(tensor, np.float32(1))
        if (tensor := f"{name}.weight") in self:
            found = self.quantized(tensor)
            assert found.scale is not None
            scale = half(found.scale.astype(np.float32) * factor[:, None]).astype(np.float16)
            self.put(tensor, QTensor(found.kind, found.codes, scale))


class _QuantizedWeights:
    """`Weights` of the quantized model in the original's units, which folding does not change."""

    def __init__(self, found: CalibratedStore) -> None:
        self._found = found

    def __contains__(self, name: object) -> bool:
        return name in self._found.weights

    def read(self, name: str) -> F32:
        if name not in self._found:
            return self._found.weights.read(name)
        return self._found.fold.undo(name, self._found.quantized(name).dequantize())


class _CalibratingOps(PackedOps):
    """Quantizes each linear map when its inputs are known, then goes on with the outputs of the quantized map.

    So a layer is fitted to the inputs that it will meet, errors of all earlier layers included.
    """

    def __init__(
        self,
        spec: ModelSpec,
        batch: Batch,
        recipe: Recipe,
        method: str,
        found: CalibratedStore,
        advance: Callable[[int], None],
    ) -> None:
        super().__init__(_QuantizedWeights(found), spec, batch)
        self.recipe, self.method, self.found, self.advance = recipe, method, found, advance
        self._shares = batch.token_weights(*SHARES)

    def embed(self, ids: I64, name: str, rows: int, width: int) -> F32:
        """The table is needed here and, where the head is tied to it, fitted to the head's inputs at the end."""
        weight = f"{name}.weight"
        if (kind := self.recipe.form(weight).kind) in LIMITS and weight not in self.found:
            table = self.found.weights.read(weight)
            plain = (
                quantize(table, kind, weight)
                if self.method == "rtn"
                else search(table, kind, weight, np.ones(table.shape[1], np.float32))
            )
            self.found.put(weight, plain)
            self.advance(1)
        return super().embed(ids, name, rows, width)

    def linear(self, x: F32, *maps: tuple[str, int], bias: bool = False) -> list[F32]:
        names = tuple(name for name, _ in maps)
        form = self.recipe.form(f"{names[0]}.weight")
        if form.kind in LIMITS:
            head = names == (head_name(self.spec.decoder),)
            tokens = self._shares if names[0].startswith("decoder.") and not head else None
            self._solve(x.reshape(-1, x.shape[-1]), tokens, names, form.kind)
            self.advance(0 if head and self.spec.decoder.tie_embeddings else len(names))
        return super().linear(x, *maps, bias=bias)

    def _solve(self, x: F32, tokens: F32 | None, names: tuple[str, ...], kind: str) -> None:
        at = pieces(x.shape[1])
        moments = [_second_moment(x[:, part], tokens) for part in at]
        diagonal = np.concatenate([np.diag(moment) for moment in moments])
        matrices = [(f"{name}.weight", self.found.weights.read(f"{name}.weight")) for name in names]
        source = source_of(names[0], self.spec)
        if self.method.startswith("awq") and kind == "int4" and source and f"{source[0]}.weight" in self.found.weights:
            magnitude = shared(np.sqrt(diagonal), source[1], self._head_dim(source))
            factor = choose(matrices, kind, magnitude, moments, at)
            self._fold(source, names, factor)
            matrices = [(name, self.found.fold.apply(name, matrix)) for name, matrix in matrices]
            moments = [m / factor[part] / factor[part][:, None] for part, m in zip(at, moments, strict=True)]
            diagonal = diagonal / factor**2
        for name, matrix in matrices:
            if self.method.endswith("gptq"):
                tensor = gptq(matrix, kind, name, moments)
            elif self.method == "rtn":
                tensor = quantize(matrix, kind, name)
            else:  # an input that never showed still counts a little
                tensor = search(matrix, kind, name, diagonal + np.float32(0.01) * diagonal.mean() + np.float32(1e-12))
            self.found.put(name, tensor)

    def _head_dim(self, source: tuple[str, int]) -> int:
        """Head size of the attention whose query heads share inputs; 1 where none do."""
        return attention_of(source[0].rpartition(".")[0], self.spec).head_dim if source[1] > 1 else 1

    def _fold(self, source: tuple[str, int], names: tuple[str, ...], factor: F32) -> None:
        for name in names:
            self.found.fold.columns[f"{name}.weight"] = factor
        into, heads = source
        if heads > 1:
            factor = factor.reshape(-1, heads, self._head_dim(source))[:, 0].reshape(-1)
        self.found.scale_rows(into, np.float32(1) / factor)


def _second_moment(x: F32, tokens: F32 | None) -> F32:
    """(K, K): the mean of x x^T over rows (S, K), weighted where `tokens` (S,) says so."""
    total = np.zeros((x.shape[1], x.shape[1]), np.float32)
    for i in range(0, len(x), _ROWS):
        part = x[i : i + _ROWS]
        if tokens is not None:
            part = part * np.sqrt(tokens[i : i + _ROWS, None])
        total += part.T @ part
    return total / np.float32(len(x))


def calibrate(
    spec: ModelSpec,
    weights: Weights,
    recipe: Recipe,
    batch: Batch,
    method: str,
    folder: Path,
    progress: Progress | None = None,
) -> CalibratedStore:
    """Quantize every linear map of `recipe` that takes int8 or int4, by `method`, on its inputs from `batch`.

    Memory: the largest tensor twice, one Hessian with its factor, and the batch's widest activation twice.
    """
    found = CalibratedStore(weights, folder)
    total = sum(weights.is_linear(name) and recipe.form(name).kind in LIMITS for name in weights.names())
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(f"calibrate ({method})", done, total)

    advance(0)
    ops = _CalibratingOps(spec, batch, recipe, method, found, advance)
    embeds = batch_embeddings(ops, spec, batch, batch_features(ops, spec, batch))
    decoder(ops, embeds, spec.decoder)
    return found
