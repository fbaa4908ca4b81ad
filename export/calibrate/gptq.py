"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): later columns of a row make up for earlier rounding errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgevlm.bundle.qtensor import BLOCK, QTensor
from edgevlm.export.quantize.round import LIMITS, best_scale, check, half, quantize, reciprocal, search
from edgevlm.types import F32

DAMPING = 0.01  # of the Hessian's mean diagonal, added to the diagonal, as in the paper
WIDEST = 3072  # columns that share one Hessian: wider maps are solved in pieces, whose memory and time stay bounded
_ROWS = 4096


def pieces(columns: int) -> list[slice]:
    """Equal runs of whole blocks, at most `WIDEST` columns each."""
    count = -(-columns // WIDEST)
    width = -(-columns // count // BLOCK) * BLOCK
    return [slice(i, min(i + width, columns)) for i in range(0, columns, width)]


def gptq(
    weight: F32, kind: str, name: str, hessian: Sequence[F32], *, damping: float = DAMPING, sweeps: int = 2
) -> QTensor:
    """`weight` (N, K) with codes and scales that minimize tr(E H E^T), E the error and H the inputs' second moment.

    `hessian` holds the blocks of H on its diagonal, one for each of `pieces(K)`: one (K, K), but for very wide maps.
    Columns are rounded in order, and each one's error is spread over those not yet rounded. Scales are searched when
    their block is reached. `sweeps` of coordinate descent follow (QuantEase, Behdin et al. 2023, arXiv 2309.01885):
    every code, then every scale, is set to the best one given all others, so the objective never rises.
    """
    if kind not in LIMITS:
        return quantize(weight, kind, name)
    check(weight, kind, name)
    rows, columns = weight.shape
    codes = np.empty((rows, columns), np.int8)
    scale = np.empty((rows, columns // BLOCK if kind == "int4" else 1), np.float16)
    fixed = None
    if kind == "int8":  # one scale for the whole row, whatever the pieces
        importance = np.concatenate([np.diag(damped(h, damping)) for h in hessian])
        fixed = best_scales(weight, importance)
        scale[:] = fixed[:, None]
    for part, moment in zip(pieces(columns), hessian, strict=True):
        solid = damped(moment, damping)
        factor = inverse_factor(solid)
        for i in range(0, rows, _ROWS):
            some = slice(i, i + _ROWS)
            target = np.ascontiguousarray(weight[some, part].T)  # (K, n): a column of weights is contiguous
            c, s = _round(target, factor, None if fixed is None else fixed[some])
            for _ in range(sweeps):
                _descend(target, c, s, solid, refit=fixed is None)
            codes[some, part] = c.T
            if fixed is None:
                scale[some, part.start // BLOCK : part.stop // BLOCK] = s.T
    return QTensor(kind, codes, scale)


def best_scales(weight: F32, importance: F32) -> F32:
    """(N,) int8 scales of rows."""
    scale = search(weight, "int8", "", importance).scale
    assert scale is not None
    return scale[:, 0].astype(np.float32)


def damped(hessian: F32, damping: float) -> F32:
    """`hessian` over its mean diagonal, plus `damping` on the diagonal; the identity where all inputs were zero."""
    mean = float(np.mean(np.diag(hessian)))
    if not mean > 1e-30:  # below, its inverse leaves float32
        return np.eye(len(hessian), dtype=np.float32)
    out = np.asarray(hessian / np.float32(mean), dtype=np.float32)
    out[np.diag_indices(len(out))] += np.float32(damping)
    return out


def inverse_factor(hessian: F32) -> F32:
    """Upper triangular U with U^T U = H^-1, from one Cholesky factor of H with its rows and columns reversed."""
    lower = np.linalg.cholesky(hessian[::-1, ::-1].astype(np.float64))
    return np.triu(np.linalg.inv(lower)[::-1, ::-1]).astype(np.float32)


def _round(target: F32, factor: F32, fixed: F32 | None) -> tuple[F32, F32]:
    """Codes (K, n) and scales (K / 32, n), or the fixed one (1, n), both float32: one pass with error feedback."""
    columns, rows = target.shape
    diagonal = np.diag(factor).copy()
    importance = (np.float32(1) / diagonal**2)[:, None]  # what this column's error costs once later ones made up for it
    left = target.copy()
    codes = np.empty_like(target)
    scales = np.empty((columns // BLOCK, rows), np.float32) if fixed is None else fixed[None]
    low, high = LIMITS["int4" if fixed is None else "int8"]
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        if fixed is None:
            scales[start // BLOCK] = best_scale(left[start:stop], importance[start:stop], "int4")
        scale = scales[start // BLOCK if fixed is None else 0]
        inverse = reciprocal(scale)
        errors = np.empty((stop - start, rows), np.float32)
        for j in range(start, stop):
            codes[j] = np.clip(np.rint(left[j] * inverse), low, high)
            error = (left[j] - codes[j] * scale) / diagonal[j]
            left[j + 1 : stop] -= factor[j, j + 1 : stop, None] * error
            errors[j - start] = error
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return codes, scales


def _descend(target: F32, codes: F32, scales: F32, hessian: F32, *, refit: bool) -> None:
    """One sweep over all columns, in place: each code to its optimum, then (`refit`) its block's scale."""
    columns = len(target)
    values = (codes.reshape(len(scales), -1, codes.shape[1]) * scales[:, None]).reshape(target.shape)
    slope = hessian @ (target - values)  # (K, n): half the direction of descent
    low, high = LIMITS["int4" if refit else "int8"]
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        own = hessian[start:stop, start:stop]
        scale = scales[start // BLOCK if refit else 0]
        inverse = reciprocal(scale)
        local = slope[start:stop].copy()
        for j in range(stop - start):
            code = codes[start + j]
            step = np.clip(np.rint(code + local[j] * (inverse / own[j, j])), low, high) - code
            code += step
            local -= own[:, j, None] * (step * scale)
        if refit:
            _refit(codes[start:stop], scale, local, own)
        slope -= hessian[:, start:stop] @ (codes[start:stop] * scale - values[start:stop])


def _refit(codes: F32, scale: F32, slope: F32, own: F32) -> None:
    """Move each block's scale (n,), in place, to the least-squares one where its float16 form lowers the objective."""
    gain = (codes * slope).sum(0)
    curvature = (codes * (own @ codes)).sum(0)
    moved = scale + np.divide(gain, curvature, out=np.zeros_like(gain), where=curvature > 0)
    change = half(moved) - scale
    scale += np.where(change * (change * curvature - 2 * gain) < 0, change, np.float32(0))
