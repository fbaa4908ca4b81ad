"""Seconds of a stage on a device that is not at hand: counted work over published rates."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.models.work import Work


@dataclass(frozen=True)
class Device:
    """What a processor's kernels reach, not what its data sheet says: docs/performance.md has sources and errors."""

    name: str
    integer: float  # operations a second of 8-bit products
    floats: float  # of float32 products
    bandwidth: float  # bytes a second from memory


DEVICES = {
    "pi4": Device("Raspberry Pi 4", 22e9, 8e9, 5.6e9),
    "pi5": Device("Raspberry Pi 5", 138e9, 41e9, 11.1e9),
    "orin-nano": Device("Jetson Orin Nano, CPU", 147e9, 44e9, 12.6e9),
    "phone": Device("a phone of 2024, CPU", 190e9, 57e9, 22e9),
}


def seconds(work: Work, read: float, device: Device, *, integer: bool = True, number: int = 4) -> float:
    """The longer of computing and reading.

    read: bytes of weights; integer: whether linear maps multiply 8-bit numbers; number: bytes of a kept number.
    """
    products = sum(work.products.values())
    rate = device.integer if integer else device.floats
    compute = products / rate + (work.attention + work.floats) / device.floats
    # What an operation gives is written once and read once, in float32.
    return max(compute, (read + number * work.kept + 8 * work.values) / device.bandwidth)
