"""The quantizer against GGUF's own reference rounding, and the forms that hold its codes."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgevlm.bundle.qtensor import QTensor
from edgevlm.errors import EdgeVLMError
from edgevlm.export.onnx_.storage import pack_rows
from edgevlm.export.quantize.round import quantize

MATRICES = st.integers(1, 4).flatmap(
    lambda rows: st.integers(1, 3).flatmap(
        lambda blocks: arrays(np.float32, (rows, 32 * blocks), elements=st.floats(-1000, 1000, width=32))
    )
)


@settings(max_examples=150, deadline=None)
@given(MATRICES)
def test_int4_is_q4_0_bit_for_bit(weight: np.ndarray) -> None:
    tensor = quantize(weight, "int4", "w")
    kind = gguf.GGMLQuantizationType.Q4_0
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)
    assert np.array_equal(tensor.dequantize(), theirs)
    assert tensor.codes.min() >= -8 and tensor.codes.max() <= 7


@settings(max_examples=150, deadline=None)
@given(MATRICES)
def test_int8_is_within_half_a_step(weight: np.ndarray) -> None:
    tensor = quantize(weight, "int8", "w")
    assert tensor.scale is not None and np.abs(tensor.codes).max() <= 127
    scale = tensor.scale.astype(np.float32)
    # fp16 rounding of the scale moves the outermost code by up to 127 * 2^-11 of a step, or one step of fp16's
    # smallest subnormal where the row is tiny.
    slack = np.maximum(scale * (0.5 + 127 * 2.0**-11), 127 * 2.0**-24)
    assert (np.abs(tensor.dequantize() - weight) <= slack).all()


def test_zero_rows_stay_zero() -> None:
    weight = np.zeros((2, 64), np.float32)
    for kind in ("int8", "int4"):
        tensor = quantize(weight, kind, "w")
        assert tensor.scale is not None and not tensor.scale.any() and not tensor.dequantize().any()


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_floats_are_kept(kind: str) -> None:
    weight = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    dtype = np.float32 if kind == "fp32" else np.float16
    assert np.array_equal(quantize(weight, kind, "w").dequantize(), weight.astype(dtype).astype(np.float32))


@pytest.mark.parametrize(
    ("weight", "kind", "sentence"),
    [
        (np.ones((2, 48)), "int4", "int4 is not available for 'w': its 48 inputs are no multiple of 32"),
        (np.full((2, 32), 1e6), "fp16", "The weight 'w' reaches 1e+06, more than fp16 can hold"),
        (np.full((2, 32), np.nan), "int8", "The weight 'w' holds NaN or infinity"),
        (np.ones((2, 32)), "int3", "Quantization 'int3' is not available: choose one of fp32, fp16, int8, int4"),
    ],
)
def test_refusals(weight: np.ndarray, kind: str, sentence: str) -> None:
    with pytest.raises(EdgeVLMError, match="^" + sentence.replace("+", r"\+").replace(".", r"\.")):
        quantize(weight.astype(np.float32), kind, "w")


def test_packed_rows_hold_unsigned_codes_low_nibble_first() -> None:
    codes = np.array([[-8, 7, 0, 1] * 8], np.int8)
    packed = pack_rows(QTensor("int4", codes, np.ones((1, 1), np.float16)))
    assert packed[0, :2].tolist() == [0xF0, 0x98]
    packed = pack_rows(QTensor("int8", np.array([[-127, 0, 127]], np.int8), np.ones((1, 1), np.float16)))
    assert packed.tolist() == [[1, 128, 255]]
