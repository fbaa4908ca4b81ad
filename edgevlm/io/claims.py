"""The claim on an output: one process at a time may write it, and what a stopped one left is found by the next.

Beside an output OUT that is being written lies the hidden folder `.OUT.edgevlm`: a lock, which the system releases when
its process ends however it ends, and everything that does not have its final name yet. Being on OUT's own disk, what is
in it takes its final name by a rename.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgevlm.errors import EdgeVLMError
from edgevlm.io.console import note

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_LOCK = "lock"
_LONGEST = 200  # bytes of a name that still has room for what is put around it
_FAR = 1 << 30  # Windows locks bytes against reading, too: one that no file has
_held: set[int] = set()  # handles of this process's locks


def _let_go() -> None:
    """In a forked child: a worker may outlive its killed parent by seconds, and would hold the parent's locks on."""
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_let_go)


def work_folder(out: Path) -> Path:
    """Where a process that has claimed `out` works."""
    name = out.name
    if len(os.fsencode(name)) > _LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return out.parent / f".{name}.edgevlm"


@contextmanager
def claimed(out: Path, recover: Callable[[Path], None] | None = None, *, patience: float = 0.0) -> Iterator[Path]:
    """The work folder of `out`, empty and for this process alone; it is gone at the end, with what is still in it.

    recover: called with the work folder before what is in it is removed: what a stopped process left, and at the end.
    patience: seconds to wait for another process that writes `out`; then EdgeVLMError.
    """
    work = work_folder(out)
    handle = _take(work, out, time.monotonic() + patience)
    try:
        if left := sorted(path.name for path in work.iterdir() if path.name != _LOCK):
            _empty(work, recover)
            note(f"Removed what a stopped run had left of '{out.name}': {work.name} ({', '.join(left)}).")
        yield work
    finally:
        if handle in _held:  # not in a forked child that ends
            with suppress(OSError):
                _empty(work, recover)
            _release(handle, work)


def _empty(work: Path, recover: Callable[[Path], None] | None) -> None:
    if recover is not None:
        recover(work)
    for path in work.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def _take(work: Path, out: Path, deadline: float) -> int:
    """Make the work folder and lock it; the handle that holds the lock."""
    while True:
        if work.is_symlink() or (work.exists() and not work.is_dir()):
            raise EdgeVLMError(f"'{work}' is in the way of the folder that edgevlm works in: move it away.")
        work.mkdir(exist_ok=True)
        try:
            handle, made = _open(work / _LOCK)
        except FileNotFoundError:  # its last owner removed it in this moment
            continue
        except OSError:
            with suppress(OSError):
                work.rmdir()
            raise
        owner = _try_lock(handle, made)
        if owner is not None:
            os.close(handle)
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            raise EdgeVLMError(owner.format(out=out, work=work))
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), (work / _LOCK).stat()):
                break
        os.close(handle)
    _held.add(handle)
    with suppress(OSError):  # for the sentence that another process shows, which can do without
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
    return handle


def _open(path: Path) -> tuple[int, bool]:
    """A handle, and whether the file was made by this call."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        return os.open(path, os.O_RDWR), False


def _try_lock(handle: int, made: bool) -> str | None:
    """Lock the file; a sentence where that is not to be had.

    On a file system without locks the file itself is one, which outlives a process that is killed.
    """
    try:
        if sys.platform == "win32":
            os.lseek(handle, _FAR, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        process = os.read(handle, 20).decode("ascii", "replace").strip()
        who = f" (process {process})" if process.isdigit() else ""
        return f"Another edgevlm{who} is writing '{{out}}': wait until it is done, or choose another output."
    except OSError:
        if not made:
            return (
                "Another edgevlm is writing '{out}', or was killed while it did, which this file system cannot tell: "
                "if none runs, remove '{work}'."
            )
    return None


def _release(handle: int, work: Path) -> None:
    if sys.platform == "win32":
        os.close(handle)  # an open file cannot be removed there
    with suppress(OSError):
        (work / _LOCK).unlink()
        work.rmdir()
    _held.discard(handle)
    if sys.platform != "win32":
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # a child may have been forked between these two lines
        os.close(handle)
