"""What the default suite runs of the cases of a test."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest


def heavy_but(kept: Container[Any], cases: Iterable[Any], *, several: bool = False) -> list[Any]:
    """The cases for `parametrize`, heavy but for those in `kept`. several: a case has a value for each of its names."""
    return [
        pytest.param(*(case if several else (case,)), marks=[pytest.mark.heavy] * (case not in kept)) for case in cases
    ]
