"""Activation functions in float32 numpy, by the names that a model's description gives them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edgevlm.types import F32

_VALUES = 1 << 16  # in work at once
_SQRT_2_OVER_PI = np.float32(math.sqrt(2.0 / math.pi))


def _sigmoid(x: F32) -> F32:
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-x)), np.float32)


def _softplus(x: F32) -> F32:
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))), np.float32)


def _silu(x: F32) -> F32:
    with np.errstate(over="ignore"):  # exp overflows to inf for very negative values, and 1/inf is the right 0
        return np.asarray(x / (1.0 + np.exp(-x)), np.float32)


def _gelu_tanh(x: F32) -> F32:
    x = np.ascontiguousarray(x)
    out = np.empty_like(x)
    flat, found = x.reshape(-1), out.reshape(-1)
    for start in range(0, flat.size, _VALUES):  # a part at a time, which stays in the processor's cache
        some = flat[start : start + _VALUES]
        squashed = np.tanh(_SQRT_2_OVER_PI * (some + np.float32(0.044715) * some * some * some))
        found[start : start + _VALUES] = 0.5 * some * (1.0 + squashed)
    return out


def _gelu(x: F32) -> F32:
    squashed = np.asarray(np.frompyfunc(math.erf, 1, 1)(x / np.float32(math.sqrt(2.0))), np.float32)
    return np.asarray(0.5 * x * (1.0 + squashed), np.float32)


def _quick_gelu(x: F32) -> F32:
    with np.errstate(over="ignore"):
        return np.asarray(x / (1.0 + np.exp(np.float32(-1.702) * x)), np.float32)


def _relu(x: F32) -> F32:
    return np.maximum(x, np.float32(0))


def _tanh(x: F32) -> F32:
    return np.asarray(np.tanh(x), np.float32)


def _softmax(x: F32) -> F32:
    weights = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True), np.float32)


ACTS: dict[str, Callable[[F32], F32]] = {
    "silu": _silu, "gelu": _gelu, "gelu_tanh": _gelu_tanh, "quick_gelu": _quick_gelu, "relu": _relu, "tanh": _tanh,
    "softmax": _softmax, "sigmoid": _sigmoid, "softplus": _softplus,
}  # fmt: skip
