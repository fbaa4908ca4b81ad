"""The quantizer in torch is the export's, bit for bit, and training through it ends at the exported weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from edgevlm.export.quantize.round import quantize
from edgevlm.train.fake_quantize import StraightThrough, patch, round_weight

KINDS = ("fp16", "int8", "int4")
# Weights of any size that fp16 scales can hold; ties, zeros and blocks of zeros included.
VALUES = st.one_of(
    st.floats(-8, 8, width=32), st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 7.0, -7.0, 1e-6, 3e4, -3e4])
)


@settings(max_examples=150, deadline=None)
@given(
    weight=hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.sampled_from([32, 64, 96])), elements=VALUES),
    kind=st.sampled_from(KINDS),
)
@example(weight=np.eye(1, 32, dtype=np.float32) * np.finfo(np.float32).tiny, kind="int4")  # 1 / scale is infinite
def test_torch_rounds_as_the_export_does(weight: np.ndarray, kind: str) -> None:
    theirs = quantize(weight, kind, "w").dequantize()
    ours = round_weight(torch.from_numpy(weight), kind).numpy()
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs)  # -0.0 equals 0.0: a code of 0 has no sign


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-5, 0.02, 1.0, 300.0])
def test_large_matrices_agree_too(kind: str, scale: float) -> None:
    weight = (np.random.default_rng(3).standard_normal((256, 576)) * scale).astype(np.float32)
    theirs = quantize(weight, kind, "w").dequantize()
    assert np.array_equal(round_weight(torch.from_numpy(weight), kind).numpy(), theirs)


def test_the_gradient_passes_straight_through() -> None:
    weight = torch.randn(4, 64, requires_grad=True)
    out = StraightThrough.apply(weight, "int4")
    upstream = torch.randn(4, 64)
    out.backward(upstream)
    assert weight.grad is not None and torch.equal(weight.grad, upstream)
    assert torch.equal(out, round_weight(weight.detach(), "int4")) and not torch.equal(out, weight)


def test_patched_layers_compute_with_rounded_weights_and_keep_their_parameters() -> None:
    linear, table = nn.Linear(64, 8), nn.Embedding(10, 64)
    names = [list(module.state_dict()) for module in (linear, table)]
    x, ids = torch.randn(3, 64), torch.tensor([1, 9, 1])
    for module in (linear, table):
        patch(module, "int4")
    wanted = x @ round_weight(linear.weight, "int4").T + linear.bias
    torch.testing.assert_close(linear(x), wanted)
    assert torch.equal(table(ids), round_weight(table.weight, "int4")[ids])
    assert [list(module.state_dict()) for module in (linear, table)] == names
