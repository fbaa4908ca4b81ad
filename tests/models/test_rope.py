"""Rows of rotary embeddings have the same bits on every CPU (values: test_eager and test_decoder)."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

from edgevlm.models.rope import cos_sin, frequencies

PROGRAM = """
import hashlib, sys
import numpy as np
from edgevlm.models.rope import rope_rows
from edgevlm.models.spec import Rope
rows = [rope_rows(Rope(theta, 64), np.arange(8192)[None]) for theta in (1e4, 1e5, 1e6, 5e6)]
print(hashlib.sha256(b"".join(part.tobytes() for both in rows for part in both)).hexdigest())
"""


def test_rows_do_not_depend_on_what_vectors_the_cpu_has() -> None:
    """numpy's own float32 functions do, which is why they are not used: with AVX-512 they have other last bits."""
    have = " ".join(name for name in __cpu_dispatch__ if __cpu_features__[name])
    found = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM], env=os.environ | {"NPY_DISABLE_CPU_FEATURES": without},
            capture_output=True, text=True, check=True,
        ).stdout
        for without in ("", have)
    }  # fmt: skip
    assert len(found) == 1


def test_values_are_float64s_rounded() -> None:
    angles = np.random.default_rng(0).uniform(0, 8192, 1000).astype(np.float32)
    cos, sin = cos_sin(angles)
    assert cos.dtype == sin.dtype == np.float32
    np.testing.assert_array_equal(cos, np.cos(angles.astype(np.float64)).astype(np.float32))
    np.testing.assert_array_equal(sin, np.sin(angles.astype(np.float64)).astype(np.float32))
    exponents = np.arange(0, 1, 1 / 64, dtype=np.float32)
    np.testing.assert_allclose(frequencies(1e6, exponents), 1e6 ** -exponents.astype(np.float64), rtol=1.3e-7)
