"""Arrays in a folder, for later processes: several may share it, and it is bounded."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.errors import EdgeVLMError, EdgeVLMWarning
from edgevlm.io.json import parse_json
from edgevlm.io.options import shown
from edgevlm.io.regular import read_regular

LIMIT = 1 << 30  # bytes: features of 7,000 views of 64 tokens in 576 values
MARK = b"edgevlm arrays 1\n"
HEAD = 1 << 16  # bytes that a file has before its values, at most
LARGEST = 1 << 28  # bytes of one file's values
SUFFIX, PART = ".arrays", ".part"
STALE = 3600.0  # seconds after which a file that nobody finished is removed
LOOK_AGAIN = 64  # files that this process writes before it counts what others wrote, too
DTYPES = ("<f4", "<i4", "|i1")

Arrays = Mapping[str, npt.NDArray[Any]]


class ArrayFolder:
    """One file for each key, written beside its name and renamed.

    A file is read with its shapes, its types and the sha256 of its values checked; one that is damaged counts as none.
    Whoever can write to the folder decides what the model sees: let it be yours alone.
    """

    def __init__(self, folder: Path | str, limit: int = LIMIT) -> None:
        """limit: bytes of all files together; what was used least recently goes first.

        Raises EdgeVLMError where the folder cannot be made.
        """
        if type(limit) is not int or limit < 1:
            raise EdgeVLMError(f"The limit of the cache's folder is {shown(limit)}: give a whole number of bytes.")
        self.folder, self.limit = Path(folder), limit
        self._bytes, self._written = 0, 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._prune()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise EdgeVLMError(f"The folder '{folder}' cannot be used ({reason}): choose another one.") from None

    def read(self, key: bytes) -> dict[str, npt.NDArray[Any]] | None:
        """What was written under the key, or None."""
        path = self._path(key)
        try:
            found = _parse(read_regular(path, LARGEST + HEAD, "remove it"))
            os.utime(path)
        except (OSError, EdgeVLMError):
            return None
        return found

    def write(self, key: bytes, arrays: Arrays) -> None:
        """Keep arrays of float32, int32 or int8. A folder that cannot be written to is left alone from then on, with a
        warning."""
        if sum(array.nbytes for array in arrays.values()) > min(self.limit, LARGEST):
            return
        content = _written(arrays)
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder, suffix=PART, delete=False) as new:
                try:
                    new.write(content)
                    new.close()
                    os.replace(new.name, self._path(key))
                except BaseException as error:
                    new.close()
                    with suppress(OSError):
                        os.unlink(new.name)
                    if not (isinstance(error, PermissionError) and self._path(key).exists()):
                        raise  # else another process has written the same, and reads it now, on Windows
            self._bytes += len(content)
            self._written += 1
            if self._bytes > self.limit or self._written % LOOK_AGAIN == 0:
                self._prune()
        except OSError as error:
            self.limit = 0
            warnings.warn(
                f"The folder '{self.folder}' cannot be written to ({error.strerror}): nothing more is kept there.",
                EdgeVLMWarning,
                stacklevel=2,
            )

    def _path(self, key: bytes) -> Path:
        return self.folder / (hashlib.sha256(key).hexdigest() + SUFFIX)

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
            try:
                os.unlink(path)
            except PermissionError:  # Windows, where another process reads it now
                continue
            except FileNotFoundError:
                pass
            self._bytes -= size


def _written(arrays: Arrays) -> bytes:
    stored = {
        name: np.ascontiguousarray(array, np.dtype(array.dtype).newbyteorder("<")) for name, array in arrays.items()
    }
    values = b"".join(array.tobytes() for array in stored.values())
    about = {name: [array.dtype.str, array.shape] for name, array in stored.items()}
    head = json.dumps({"arrays": about, "sha256": hashlib.sha256(values).hexdigest()})
    return MARK + head.encode() + b"\n" + values


def _parse(content: bytes) -> dict[str, npt.NDArray[Any]] | None:
    """The arrays that a file holds, or None where it is damaged."""
    start = content.find(b"\n", len(MARK), len(MARK) + HEAD) + 1
    if not content.startswith(MARK) or not start:
        return None
    values, found, place = memoryview(content)[start:], {}, 0
    try:
        head = parse_json(content[len(MARK) : start], HEAD)
        if hashlib.sha256(values).hexdigest() != head["sha256"]:
            return None
        for name, (dtype, shape) in head["arrays"].items():
            count = math.prod(shape)
            if dtype not in DTYPES or not all(type(size) is int and size > 0 for size in shape):
                return None
            found[name] = np.frombuffer(values, dtype, count, place).reshape(shape)
            place += found[name].nbytes
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    return found if place == len(values) else None
