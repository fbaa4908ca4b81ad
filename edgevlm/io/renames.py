"""Renames that cannot replace, the exchange of two folders in one step, and data brought down to the disk."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

# renameat2(2) of Linux and renamex_np(2) of macOS
_KEEP, _EXCHANGE = (4, 2) if sys.platform == "darwin" else (1, 2)
_HERE = -100  # AT_FDCWD
# How a system or a file system says that it does not know a flag.
_UNKNOWN = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV}
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR}
_THREADS = 8  # the disk takes waiting flushes together: 300 small files in 30 ms where one after the other takes 1 s


def rename_new(source: Path, target: Path) -> None:
    """Rename a file or folder to a name that is free, or that an empty folder has.

    Raises FileExistsError where something is there, and leaves both as they are.
    """
    try:
        if sys.platform == "win32":
            _without_empty(source, target)
        elif source.is_dir():
            os.rename(source, target)  # POSIX: replaces an empty folder, and nothing else
        elif not _rename(source, target, _KEEP):
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.replace(source, target)
    except OSError as error:
        if error.errno in _TAKEN:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        raise


def rename_free(source: Path, target: Path) -> Path:
    """`rename_new` to `target`, or where that is taken to the first free of target-2, target-3, ...; returns it."""
    number, place = 1, target
    while True:
        with suppress(FileExistsError):
            rename_new(source, place)
            return place
        number += 1
        place = target.with_name(f"{target.name}-{number}")


def exchange(one: Path, other: Path) -> bool:
    """Let two existing files or folders swap names in one step; False where the system cannot."""
    return _rename(one, other, _EXCHANGE)


def sync(paths: Iterable[Path]) -> None:
    """Wait until files are on the disk with their content, and folders with their names."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(_sync, paths))


def sync_tree(folder: Path) -> None:
    """`sync` of a folder with all that it holds."""
    sync([*(path for path in folder.rglob("*") if not path.is_symlink()), folder])


def _sync(path: Path) -> None:
    folder = path.is_dir()
    if folder and sys.platform == "win32":  # where names need no flush, and folders cannot be opened
        return
    handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not folder or error.errno not in _UNKNOWN:  # some file systems flush no folders
            raise
    finally:
        os.close(handle)


def _without_empty(source: Path, target: Path) -> None:
    """Windows' rename, which replaces nothing, not even an empty folder."""
    if source.is_dir() and target.is_dir():
        target.rmdir()
    os.rename(source, target)


def _rename(source: Path, target: Path, flag: int) -> bool:
    """Rename under a flag; False where it is unknown to this system or file system."""
    call = _call()
    if call is None:
        return False
    sys.audit("os.rename", str(source), str(target), -1, -1)
    names = os.fsencode(source), os.fsencode(target)
    words = (*names, flag) if sys.platform == "darwin" else (_HERE, names[0], _HERE, names[1], flag)
    if call(*words) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))


@cache
def _call() -> Any:
    """The system's call, or None."""
    if sys.platform == "win32":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    call = getattr(library, "renamex_np" if sys.platform == "darwin" else "renameat2", None)
    if call is not None:
        paths, flag = ctypes.c_char_p, ctypes.c_uint
        darwin = sys.platform == "darwin"
        call.argtypes = [paths, paths, flag] if darwin else [ctypes.c_int, paths, ctypes.c_int, paths, flag]
        call.restype = ctypes.c_int
    return call
