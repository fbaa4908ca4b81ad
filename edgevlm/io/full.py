"""A full disk, in whatever words a writer reports it, under the name of the output that it was to hold."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgevlm.errors import EdgeVLMError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WORDS = {words: number for number in FULL if not (words := os.strerror(number)).startswith("Unknown error")}
_WORDS["not enough space on the disk"] = errno.ENOSPC  # Windows' own, beside those of C; it has none for a quota
_LEFT = 1 << 20  # bytes; a disk with less is taken for the cause of an error without words


@contextmanager
def disk_errors(out: Path, work: Path) -> Iterator[None]:
    """Errors of writing to the hidden folder `work` become OSErrors whose file name is `out`.

    Other files' errors stay what they are, and so does an error of a file without a name while there is room beside
    `out`: it may have met another disk.
    """
    try:
        yield
    except EdgeVLMError:
        raise
    except OSError as error:
        number = error.errno or _number(str(error)) or (_no_room(out) and errno.ENOSPC)
        if not number:
            raise
        name = error.filename2 or error.filename
        ours = name is not None and Path(os.fsdecode(name)).is_relative_to(work)
        if ours or (name is None and (number in FULL[1:] or (number == errno.ENOSPC and _no_room(out)))):
            raise OSError(number, os.strerror(number), str(out)) from error
        raise
    except Exception as error:  # safetensors, torch and coremltools have errors of their own
        number = _number(str(error)) or (isinstance(error, RuntimeError) and _no_room(out) and errno.ENOSPC)
        if number:
            raise OSError(number, os.strerror(number), str(out)) from error
        raise


def _number(text: str) -> int | None:
    """The number of the error that a message quotes."""
    return next((number for words, number in _WORDS.items() if words in text), None)


def _no_room(out: Path) -> bool:
    try:
        return shutil.disk_usage(out.parent).free < _LEFT
    except OSError:
        return False
