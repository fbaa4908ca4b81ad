"""Angles of positions: rotary embeddings (Su et al. 2021, arXiv 2104.09864), scaled or not, and waves of towers.

numpy's float32 powers, sines and cosines are computed by what vectors a CPU has, and differ in the last bit from one
kind of CPU to the next. Here they are rounded from float64, so that exported tables and answers do not.
"""

from __future__ import annotations

import math

import numpy as np

from edgevlm.models.spec import Rope, RopeScaling
from edgevlm.types import F32, I64


def cos_sin(angles: F32) -> tuple[F32, F32]:
    """Cosines and sines of angles in radians, of any shape."""
    wide = angles.astype(np.float64)
    return np.cos(wide).astype(np.float32), np.sin(wide).astype(np.float32)


def frequencies(theta: float, exponents: F32) -> F32:
    """1 / theta ** exponents, rounded twice to float32, as transformers does."""
    powers = np.power(np.float64(np.float32(theta)), exponents.astype(np.float64))
    found: F32 = np.float32(1) / powers.astype(np.float32)
    return found


def rope_rows(rope: Rope, places: I64) -> tuple[F32, F32]:
    """cos and sin (S, size / 2) of positions (axes, S), in the float32 arithmetic of transformers."""
    rates = rope_frequencies(rope)
    if rope.scaling is not None:
        rates = rates / rope_factors(rope)
    rates = rates / np.float32(rope.factor)
    if rope.divisors:
        rates = np.divide(rates, rope.divisors, dtype=np.float32)
    axis = np.zeros(rope.size // 2, np.intp)  # the position axis that each frequency takes
    if rope.sections and not rope.interleaved:
        axis = np.repeat(np.arange(len(rope.sections)), rope.sections)
    elif rope.sections:  # time, row, column, time, row, column ..., then time for what is left
        for number in (1, 2):
            axis[number : rope.sections[number] * 3 : 3] = number
    cos, sin = cos_sin(places.astype(np.float32)[axis].T * rates)
    gain = np.float32(rope.gain)
    return cos * gain, sin * gain


def rope_factors(rope: Rope) -> F32:
    """What scaling divides each frequency by, (size / 2).

    Of transformers' _compute_llama3_parameters and _compute_yarn_parameters; llama.cpp reads these as the tensor
    rope_freqs.
    """
    rates, scaling = rope_frequencies(rope), rope.scaling
    if scaling is None:
        return np.ones_like(rates)
    turns = scaling.original_context * rates / np.float32(2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if scaling.kind == "yarn":
        first, last = math.floor(_place(rope, scaling, high)), math.ceil(_place(rope, scaling, low))
        first, last = max(first, 0), min(last, rope.size - 1)
        place = np.arange(rope.size // 2, dtype=np.float32)
        kept = 1 - np.clip((place - first) / np.float32((last - first) or 0.001), 0, 1)
    else:
        kept = np.clip((turns - low) / (high - low), 0, 1)
    factors: F32 = (1 / ((1 - kept) / scaling.factor + kept)).astype(np.float32)
    return factors


def _place(rope: Rope, scaling: RopeScaling, turns: float) -> float:
    """Which frequency turns so often within the original context, counted from the fastest."""
    return rope.size * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))


def rope_frequencies(rope: Rope) -> F32:
    """(size / 2) radians per position, before scaling."""
    exponents = np.arange(0, rope.size, 2, dtype=np.float32) / np.float32(rope.size)
    rates = frequencies(rope.theta, exponents)
    if rope.turning is not None:
        rates[rope.turning :] = 0
    return rates
