"""Scale search, GPTQ and AWQ folding against their definitions; property tests over weights and statistics."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

sys.path.insert(0, str(Path(__file__).parents[2]))
from small_models import asked, halved, sheet

from edgevlm.bundle.qtensor import QTensor
from edgevlm.export.calibrate.awq import Fold, choose, source_of
from edgevlm.export.calibrate.gptq import WIDEST, damped, gptq, inverse_factor, pieces
from edgevlm.export.quantize.round import quantize, search

MATRICES = st.tuples(st.integers(1, 3), st.integers(1, 3)).flatmap(
    lambda size: st.tuples(
        arrays(np.float32, (size[0], 32 * size[1]), elements=st.floats(-100, 100, width=32)),
        arrays(np.float32, (32 * size[1],), elements=st.floats(0, 1000, width=32)),
    )
)
KINDS = ("int4", "int8")


def loss(weight: np.ndarray, tensor: QTensor, moment: np.ndarray) -> float:
    error = (tensor.dequantize() - weight).astype(np.float64)
    return float(np.einsum("nk,kl,nl->", error, moment.astype(np.float64), error))


def layer(rows: int = 24, columns: int = 96, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A weight, and the second moment of inputs that hang together and differ in size."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    mix = rng.standard_normal((columns, columns // 4)) * np.exp(rng.standard_normal(columns))[:, None]
    x = mix @ rng.standard_normal((columns // 4, 4 * columns)) + 0.3 * rng.standard_normal((columns, 4 * columns))
    return weight, (x @ x.T / x.shape[1]).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(MATRICES)
def test_search_never_has_a_larger_weighted_error(kind: str, case: tuple[np.ndarray, np.ndarray]) -> None:
    weight, importance = case
    moment = np.diag(importance)
    plain = loss(weight, quantize(weight, kind, "w"), moment)
    found = loss(weight, search(weight, kind, "w", importance), moment)
    assert found <= plain * (1 + 1e-4) + 1e-9


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(MATRICES)
def test_codes_and_scales_stay_inside_the_container(kind: str, case: tuple[np.ndarray, np.ndarray]) -> None:
    weight, importance = case
    for tensor in (search(weight, kind, "w", importance), gptq(weight, kind, "w", [np.diag(importance)])):
        low, high = {"int4": (-8, 7), "int8": (-127, 127)}[kind]
        assert tensor.codes.dtype == np.int8 and low <= tensor.codes.min() and tensor.codes.max() <= high
        assert tensor.scale is not None and tensor.scale.dtype == np.float16 and np.isfinite(tensor.scale).all()
        assert tensor.scale.shape == (len(weight), weight.shape[1] // 32 if kind == "int4" else 1)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(MATRICES)
def test_gptq_without_correlations_is_the_search(kind: str, case: tuple[np.ndarray, np.ndarray]) -> None:
    """With the identity as Hessian there is nothing to make up for: the searched scales, each value to its nearest."""
    weight, _ = case
    ones = np.ones(weight.shape[1], np.float32)
    ours, theirs = gptq(weight, kind, "w", [np.diag(ones)], damping=0.0, sweeps=0), search(weight, kind, "w", ones)
    assert np.array_equal(ours.scale, theirs.scale)
    step = np.repeat(np.abs(theirs.scale), weight.shape[1] // theirs.scale.shape[1], 1).astype(np.float32)
    gap = np.abs(ours.dequantize() - weight) - np.abs(theirs.dequantize() - weight)
    assert (np.abs(gap) <= 1e-3 * step).all()  # but for ties


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_each_method_loses_less_than_the_one_before(kind: str, seed: int) -> None:
    weight, moment = layer(seed=seed)
    importance = np.diag(moment).copy()
    solid = damped(moment, 0.01)
    losses = [
        loss(weight, tensor, solid)
        for tensor in (
            quantize(weight, kind, "w"),
            search(weight, kind, "w", importance),
            gptq(weight, kind, "w", [moment], sweeps=0),
            gptq(weight, kind, "w", [moment], sweeps=1),
            gptq(weight, kind, "w", [moment], sweeps=3),
        )
    ]
    assert losses[1] <= losses[0] and losses[2] < 0.7 * losses[1] and losses[3] < 0.8 * losses[2]
    assert losses[4] <= losses[3] * (1 + 1e-5)


def test_gptq_is_the_papers_algorithm() -> None:
    """One block, one row: the update of Frantar et al., equation 3, column by column, from the inverse itself."""
    rng = np.random.default_rng(1)
    weight, x = rng.standard_normal((1, 32)).astype(np.float32), rng.standard_normal((32, 64))
    moment = (x @ x.T).astype(np.float32)
    tensor = gptq(weight, "int4", "w", [moment], damping=0.0, sweeps=0)
    assert tensor.scale is not None
    scale, left = float(tensor.scale[0, 0]), weight[0].astype(np.float64)
    inverse, codes = np.linalg.inv(moment.astype(np.float64)), []
    for q in range(32):
        codes.append(int(np.clip(np.rint(left[q] / scale), -8, 7)))
        left = left - (left[q] - codes[-1] * scale) / inverse[q, q] * inverse[q]
        inverse = inverse - np.outer(inverse[:, q], inverse[q]) / inverse[q, q]
        inverse[q, q] = 1.0  # removed
    assert tensor.codes[0].tolist() == codes


def test_inverse_factor() -> None:
    _, moment = layer()
    moment = damped(moment, 0.01)
    factor = inverse_factor(moment)
    assert np.array_equal(factor, np.triu(factor))
    assert np.allclose(factor.T @ factor @ moment, np.eye(len(moment)), atol=2e-3)


def test_inputs_that_never_showed_do_no_harm() -> None:
    weight, moment = layer()
    moment[:, 5] = moment[5] = 0
    for given_moment in (moment, np.zeros_like(moment)):
        tensor = gptq(weight, "int4", "w", [given_moment])
        plain = quantize(weight, "int4", "w")
        assert np.isfinite(tensor.dequantize()).all()
        assert np.abs(tensor.dequantize() - weight)[:, 5].max() < 3 * np.abs(plain.dequantize() - weight).max()


def test_wide_maps_are_solved_in_pieces() -> None:
    for columns in (32, WIDEST, WIDEST + 32, 8192, 12288):
        found = pieces(columns)
        assert found[0].start == 0 and found[-1].stop == columns
        assert all(a.stop == b.start for a, b in itertools.pairwise(found))
        assert all(p.stop - p.start <= WIDEST and p.start % 32 == 0 for p in found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_transposed_statistic_would_show(kind: str) -> None:
    """The planted fault: fitted to the moment of inputs in another order, GPTQ loses more than rounding does."""
    weight, moment = layer()
    order = np.random.default_rng(0).permutation(len(moment))
    wrong = gptq(weight, kind, "w", [moment[order][:, order]])
    assert loss(weight, wrong, moment) > 2 * loss(weight, gptq(weight, kind, "w", [moment]), moment)


def test_one_norm_before_two_parts_takes_no_factor() -> None:
    """Attention and MLP of a parallel layer read the same values; those of a tower's layers have a norm each."""
    sources = {name: source_of(f"decoder.layers.1.{name}", sheet()) for name in ("q", "k", "v", "fc1", "o")}
    assert sources == {"q": None, "k": None, "v": None, "fc1": None, "o": ("decoder.layers.1.v", 2)}
    assert source_of("vision.layers.0.fc1", sheet()) == ("vision.layers.0.norm2", 1)


def test_maps_that_no_norm_is_before_take_no_factor() -> None:
    """What learned queries read has places added behind its norm; neighbours that are joined have their own norms."""
    assert {source_of(f"projector.{name}", asked()) for name in ("k", "v", "o", "linear_2")} == {None}
    sources = {name: source_of(f"vision.join.{name}", halved()) for name in ("q", "o", "fc1", "fc2")}
    assert sources == {
        "q": ("vision.join.norm1", 1), "o": ("vision.join.v", 1), "fc1": ("vision.join.norm2", 1), "fc2": None
    }  # fmt: skip


def test_awq_scales_up_what_is_loud() -> None:
    weight, _ = layer(columns=64)
    magnitude = np.ones(64, np.float32)
    magnitude[7] = 100
    factor = choose([("w", weight)], "int4", magnitude, [np.diag(magnitude**2)], [slice(0, 64)])
    assert factor[7] > 3 * factor[8]
    error = [np.abs(quantize(weight * f, "int4", "w").dequantize() / f - weight)[:, 7].max() for f in (1, factor)]
    assert error[1] < error[0]


def test_folds_undo_what_they_apply() -> None:
    rng = np.random.default_rng(0)
    columns, rows = {"a.weight": rng.uniform(0.5, 2, 6)}, {"a.weight": rng.uniform(0.5, 2, 4), "b": np.full(3, 2.0)}
    fold = Fold(columns, rows)
    matrix = rng.standard_normal((4, 6))
    assert np.allclose(fold.undo("a.weight", fold.apply("a.weight", matrix)), matrix)
    assert np.array_equal(fold.apply("b", np.ones(3)), np.full(3, 2.0)) and fold.apply("c", matrix) is matrix
