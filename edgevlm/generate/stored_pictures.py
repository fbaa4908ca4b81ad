"""What later processes need not compute again of pictures: their views' keys, and features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from edgevlm.bundle.manifest import Bundle
from edgevlm.generate.array_folder import ArrayFolder
from edgevlm.runtimes.base import Decoder, Encoder
from edgevlm.types import F32

KEY = 32  # bytes of a view's


class StoredPictures:
    """Features of views, by their pixels, and which views a picture has: one bundle's on one engine."""

    def __init__(self, folder: ArrayFolder, bundle: Bundle, encoder: Encoder) -> None:
        self._folder, self._maker = folder, maker(bundle, encoder)
        self._width = bundle.manifest.spec.decoder.feature_width

    def views(self, picture: bytes) -> tuple[tuple[int, int], list[bytes]] | None:
        """Width and height of a picture, and its views' keys, or None. picture: its key."""
        found = self._folder.read(self._maker + picture) or {}
        size, keys = found.get("size"), found.get("keys")
        if (
            size is None
            or keys is None
            or size.shape != (2,)
            or keys.ndim != 2
            or keys.shape[1] != KEY
            or min(size) < 1
        ):
            return None
        return (int(size[0]), int(size[1])), [row.tobytes() for row in keys]

    def write_views(self, picture: bytes, size: tuple[int, int], keys: Sequence[bytes]) -> None:
        rows = np.frombuffer(b"".join(keys), np.int8).reshape(-1, KEY)
        self._folder.write(self._maker + picture, {"size": np.array(size, np.int32), "keys": rows})

    def read(self, key: bytes) -> F32 | None:
        """The features (tokens, D) of the view `key`, or None."""
        features = (self._folder.read(self._maker + key) or {}).get("features")
        fits = features is not None and features.dtype == np.float32 and features.ndim == 2
        return features if features is not None and fits and features.shape[1] == self._width else None

    def write(self, key: bytes, features: F32) -> None:
        self._folder.write(self._maker + key, {"features": features})


def maker(bundle: Bundle, engine: Encoder | Decoder) -> bytes:
    """By what arrays are known beside what they are of: the bundle's files, and the engine with its device."""
    files = sorted((name, info.sha256) for name, info in bundle.manifest.files.items())
    return hashlib.sha256(json.dumps([engine.name, engine.device, files]).encode()).digest()
