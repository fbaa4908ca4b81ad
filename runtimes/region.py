"""A bundle's region head in float32 numpy, beside any engine's decoder: a product or two for each number it reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgevlm.bundle.region import region_file
from edgevlm.models.activations import ACTS
from edgevlm.models.region import SIZE_BINS, SIZE_OCTAVES, Region
from edgevlm.models.rope import cos_sin
from edgevlm.types import F32

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

Size = tuple[float, float]  # width and height, as shares of the picture's


def open_region(bundle: Bundle) -> RegionHead:
    """The head of a bundle that has one, all of it in memory. Raises EdgeVLMError for a file of another model."""
    assert bundle.manifest.spec.region is not None
    file = region_file(bundle)
    return RegionHead(bundle.manifest.spec.region, {name: file.read(name) for name in file.tensors})


class RegionHead:
    """What a state says, and how that is written. D decoder hidden size."""

    def __init__(self, spec: Region, weights: Mapping[str, F32]) -> None:
        """weights: by name, as in `Region.shapes`."""
        self.end, self._bins, self._weights = spec.end, spec.bins, weights

    def coordinate(self, state: F32) -> float:
        """What the state (D,) of the last position says of the next coordinate: from 0 to below 1."""
        return int(self._read("coord_decoder", state).argmax()) / self._bins

    def size(self, state: F32) -> Size:
        """... of a width and height."""
        wide, high = self._read("size_decoder", state).reshape(2, SIZE_BINS).argmax(1).tolist()
        return _size(wide), _size(high)

    def coordinate_row(self, value: float) -> F32:
        """The embedding (1, D) of a coordinate."""
        return self._written("coord", value)

    def size_row(self, size: Size) -> F32:
        """The embedding (1, D) of a width and height."""
        return self._written("size", *size)

    def _read(self, name: str, state: F32) -> F32:
        return self._linear(f"{name}.fc2", ACTS["gelu_tanh"](self._linear(f"{name}.fc1", state)))

    def _written(self, name: str, *values: float) -> F32:
        turns: F32 = np.multiply([values], 2 * math.pi, dtype=np.float32)
        angles: F32 = turns @ self._weights[f"region.{name}_features"]
        return self._linear(f"{name}_encoder", np.concatenate(cos_sin(angles), axis=1))

    def _linear(self, name: str, x: F32) -> F32:
        made: F32 = x @ self._weights[f"region.{name}.weight"].T + self._weights[f"region.{name}.bias"]
        return made


def _size(number: int) -> float:
    return float(2.0 ** ((number / (SIZE_BINS - 1) - 1) * SIZE_OCTAVES))
