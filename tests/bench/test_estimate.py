"""A stage's time on paper is the longer of computing and reading."""

from __future__ import annotations

import pytest

from edgevlm.bench.estimate import DEVICES, Device, seconds
from edgevlm.models.work import Work

DEVICE = Device("of round numbers", integer=1e9, floats=1e8, bandwidth=1e7)


def test_what_is_computed() -> None:
    work = Work(products={"a": 1_000_000_000, "b": 1_000_000_000}, attention=30_000_000, floats=20_000_000, kept=5)
    assert seconds(work, 1000, DEVICE) == pytest.approx(2 + 0.5)
    assert seconds(work, 1000, DEVICE, integer=False) == pytest.approx(20 + 0.5)


def test_what_is_read() -> None:
    work = Work(products={"a": 1000}, kept=1_000_000, values=500_000)
    assert seconds(work, 10_000_000, DEVICE) == pytest.approx(1 + 0.4 + 0.4)
    assert seconds(work, 10_000_000, DEVICE, number=2) == pytest.approx(1 + 0.2 + 0.4)


def test_devices_are_of_a_kind() -> None:
    """8-bit products are no slower than float32's, and no processor here reads a tenth of what it computes."""
    for device in DEVICES.values():
        assert device.integer >= device.floats > device.bandwidth / 4
