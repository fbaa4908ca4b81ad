"""Features of pictures in a folder, for later processes: several may share it, and it is bounded."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np

from edgevlm.bundle.manifest import Bundle
from edgevlm.errors import EdgeVLMError, EdgeVLMWarning
from edgevlm.io.regular import read_regular
from edgevlm.runtimes.base import Encoder
from edgevlm.types import F32

LIMIT = 1 << 30  # bytes: 7,000 views of 64 tokens in 576 values
MARK = b"edgevlm features 1\n"
HEAD = 4096  # bytes that a file has before its values, at most
LARGEST = 1 << 28  # bytes of one view's features
SUFFIX, PART = ".features", ".part"
STALE = 3600.0  # seconds after which a file that nobody finished is removed
LOOK_AGAIN = 64  # files that this process writes before it counts what others wrote, too


class FeatureFolder:
    """One file for each view of one bundle and engine, written beside its name and renamed.

    A file is read with its shape, its type and the sha256 of its values checked; one that is damaged counts as none.
    Whoever can write to the folder decides what the model sees: let it be yours alone.
    """

    def __init__(self, folder: Path | str, bundle: Bundle, encoder: Encoder, limit: int = LIMIT) -> None:
        """limit: bytes of all files together, other bundles' among them; what was used least recently goes first.

        Raises EdgeVLMError where the folder cannot be made.
        """
        if type(limit) is not int or limit < 1:
            raise EdgeVLMError(f"The limit of the feature folder is {limit!r}: give a whole number of bytes.")
        self.folder, self.limit = Path(folder), limit
        self._width = bundle.manifest.spec.decoder.feature_width
        self._maker = maker(bundle, encoder)
        self._bytes, self._written = 0, 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._prune()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise EdgeVLMError(f"The folder '{folder}' cannot be used ({reason}): choose another one.") from None

    def read(self, key: bytes) -> F32 | None:
        """The features (tokens, D) of the view `key`, or None."""
        path = self._path(key)
        try:
            features = _parse(read_regular(path, LARGEST + HEAD, "remove it"))
            os.utime(path)
        except (OSError, EdgeVLMError):
            return None
        return features if features is not None and features.shape[1] == self._width else None

    def write(self, key: bytes, features: F32) -> None:
        """Keep them. A folder that cannot be written to is left alone from then on, with a warning."""
        content = _written(features)
        if len(content) > min(self.limit, LARGEST):
            return
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder, suffix=PART, delete=False) as new:
                try:
                    new.write(content)
                    new.close()
                    os.replace(new.name, self._path(key))
                except BaseException:
                    new.close()
                    with suppress(OSError):
                        os.unlink(new.name)
                    raise
            self._bytes += len(content)
            self._written += 1
            if self._bytes > self.limit or self._written % LOOK_AGAIN == 0:
                self._prune()
        except OSError as error:
            self.limit = 0
            warnings.warn(
                f"The folder '{self.folder}' cannot be written to ({error.strerror}): features of further pictures "
                "are not kept.",
                EdgeVLMWarning,
                stacklevel=2,
            )

    def _path(self, key: bytes) -> Path:
        return self.folder / (hashlib.sha256(self._maker + key).hexdigest() + SUFFIX)

    def _prune(self) -> None:
        """Count the files, and remove the oldest where they are too many; other processes may do so, too."""
        found = []
        for entry in os.scandir(self.folder):
            with suppress(OSError):
                about = entry.stat(follow_symlinks=False)
                if entry.name.endswith(PART) and time.time() - about.st_mtime > STALE:
                    os.unlink(entry.path)
                elif entry.name.endswith(SUFFIX):
                    found.append((about.st_mtime, about.st_size, entry.path))
        self._bytes = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if self._bytes <= self.limit:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            self._bytes -= size


def maker(bundle: Bundle, encoder: Encoder) -> bytes:
    """By what features are known beside their picture: the bundle's files, and the engine with its device."""
    files = sorted((name, info.sha256) for name, info in bundle.manifest.files.items())
    return hashlib.sha256(json.dumps([encoder.name, encoder.device, files]).encode()).digest()


def _written(features: F32) -> bytes:
    values = np.ascontiguousarray(features, "<f4").tobytes()
    head = {"shape": features.shape, "dtype": "<f4", "sha256": hashlib.sha256(values).hexdigest()}
    return MARK + json.dumps(head).encode() + b"\n" + values


def _parse(content: bytes) -> F32 | None:
    """The features that a file holds, or None where it is damaged."""
    mark, head, values = content[: len(MARK)], *content[len(MARK) :].partition(b"\n")[::2]
    try:
        about = json.loads(head) if mark == MARK and len(head) < HEAD else {}
        if about["dtype"] != "<f4" or hashlib.sha256(values).hexdigest() != about["sha256"]:
            return None
        rows, width = map(int, about["shape"])
        if min(rows, width) < 1:
            return None
        return np.frombuffer(values, "<f4").reshape(rows, width).astype(np.float32, copy=False)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
