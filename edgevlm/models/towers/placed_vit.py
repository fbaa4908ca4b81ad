"""A tower of any grid whose projector asks where patches are: sines and cosines of their columns and rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.models.rope import cos_sin, frequencies
from edgevlm.models.tensor import Tensor
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.types import F32, I64


@dataclass(frozen=True)
class PlacedVit(QwenVit):
    places: int = 0  # values of a patch: a half each for its column and its row
    kind: str = "placed_vit"

    def inputs(self) -> dict[str, Tensor]:
        places = Tensor("float32", (1, "patches", self.places))
        return super().inputs() | {"places": places, "view_mask": Tensor("bool", (1, 1, 1, "patches"))}

    def feeds(self, pixels: F32) -> dict[str, npt.NDArray[Any]]:
        found = super().feeds(pixels)
        row, col = np.divmod(np.arange(found["mask"].size), pixels.shape[2] // self.patch_size)
        places = np.concatenate([self._waves(col), self._waves(row)], axis=1)[None]
        return found | {"places": places, "view_mask": found["mask"]}

    def join(self, feeds: Sequence[dict[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
        views = np.repeat(np.arange(len(feeds)), [each["mask"].size for each in feeds])
        seen = (views == np.arange(len(feeds))[:, None])[:, None, None]
        places = np.concatenate([each["places"] for each in feeds], axis=1)
        own = ("places", "view_mask")
        plain = [{name: value for name, value in each.items() if name not in own} for each in feeds]
        return super().join(plain) | {"places": places, "view_mask": seen}

    def _waves(self, place: I64) -> F32:
        """(P, places / 2): the sines of slower and slower waves, then their cosines; angles in float32."""
        quarter = self.places // 4
        rates = frequencies(10000, np.arange(quarter, dtype=np.float32) / np.float32(quarter))
        cos, sin = cos_sin(place[:, None].astype(np.float32) * rates)
        return np.concatenate([sin, cos], axis=1)
