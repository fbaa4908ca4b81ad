"""A head beside a decoder that reads places out of its states, and writes them back in the place of tokens' embeddings.

A coordinate is the most likely of `bins` between 0 and 1, a share of the picture's width or height; a width or height
is that of 1,024 bins from 2^-10 to 1 whose logarithms are equally far apart. What was read goes back into the decoder
as Fourier features (arXiv 2006.10739) behind a linear map. No graph has the head: `runtimes/region.py` plays it.
"""

from __future__ import annotations

from dataclasses import dataclass

SIZE_BINS, SIZE_OCTAVES = 1024, 10.0


@dataclass(frozen=True)
class Region:
    """The sizes of such a head. end: the token that says that there are no more places."""

    end: int
    inner: int  # values between the two maps that read a state
    bins: int  # of a coordinate
    coord_features: int  # of a coordinate that is written: cosines, and as many sines
    size_features: int  # ... of a width and a height

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Its weights by canonical name. width: of the decoder's states."""
        found: dict[str, tuple[int, ...]] = {
            "region.coord_features": (1, self.coord_features // 2),
            "region.size_features": (2, self.size_features // 2),
        }
        maps = {
            "coord_encoder": (width, self.coord_features),
            "coord_decoder.fc1": (self.inner, width),
            "coord_decoder.fc2": (self.bins, self.inner),
            "size_encoder": (width, self.size_features),
            "size_decoder.fc1": (self.inner, width),
            "size_decoder.fc2": (2 * SIZE_BINS, self.inner),
        }
        for name, shape in maps.items():
            found |= {f"region.{name}.weight": shape, f"region.{name}.bias": shape[:1]}
        return found
