"""Commands under Windows' rules about files, played on Linux: `python windows_rules.py '[["info", "bundle"], ...]'`.

What a program there meets and Linux forgives: a folder with an open or mapped file in it cannot be renamed, an open
file neither removed nor replaced; a rename replaces nothing; folders cannot be opened, files opened for reading not
flushed; text has "\\r\\n" unless it is asked for otherwise; there is no fork, no /proc, no fcntl, resource or readline,
no link without a privilege; names that it cannot have are refused, and a second name that differs by case alone.
Prints a JSON list with each command's exit code.
"""

from __future__ import annotations

import asyncio
import builtins
import errno
import fcntl
import io
import json
import os
import shutil
import sys
import tempfile
import types
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Libraries that decide what they do by the system when they are imported, or that edgevlm imports late.
import concurrent.futures.thread  # noqa: F401  isort: skip
import ctypes  # noqa: F401  isort: skip
import multiprocessing  # noqa: F401  isort: skip
import subprocess  # noqa: F401  isort: skip

import click  # noqa: F401
import huggingface_hub  # noqa: F401
import numpy as np  # noqa: F401
import onnx
import onnxruntime  # noqa: F401
import PIL.Image
import rich.console
import rich.progress
import tokenizers  # noqa: F401

NO_MODULES = ("fcntl", "grp", "pwd", "readline", "resource", "syslog", "termios", "tty")
NO_CALLS = """
    fork forkpty geteuid getgid getloadavg getpgid getuid killpg mkfifo nice register_at_fork sched_getaffinity setsid
    statvfs sync O_CLOEXEC O_DIRECTORY O_NOCTTY O_NOFOLLOW O_NONBLOCK"""
REAL: dict[str, Any] = {name: getattr(os, name) for name in ("open", "rename", "replace", "unlink", "rmdir", "fsync")}
REAL_IO = io.open


def busy(path: Any) -> bool:
    """Whether this process has the file, or one in the folder, open or mapped."""
    place = os.path.realpath(path)
    open_files = []
    for number in os.listdir("/proc/self/fd"):
        try:
            open_files.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    with REAL_IO("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        open_files += [line.rstrip("\n").split(maxsplit=5)[5] for line in maps if line.count("/")]
    return any(file == place or file.startswith(place + "/") for file in open_files)


def denied(path: Any, other: Any = None) -> PermissionError:
    return PermissionError(errno.EACCES, "The process cannot access the file", os.fspath(path), None, other)


def rename(source: Any, target: Any) -> None:
    if busy(source):
        raise denied(source, os.fspath(target))
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "Cannot create a file when it already exists", source, None, target)
    check_name(target)
    REAL["rename"](source, target)


def replace(source: Any, target: Any) -> None:
    if busy(source) or os.path.isdir(target) or (os.path.exists(target) and busy(target)):
        raise denied(source, os.fspath(target))
    check_name(target)
    REAL["replace"](source, target)


def unlink(path: Any, *, dir_fd: int | None = None) -> None:
    if busy(path):
        raise denied(path)
    REAL["unlink"](path, dir_fd=dir_fd)


def rmdir(path: Any, *, dir_fd: int | None = None) -> None:
    if Path(os.getcwd()).is_relative_to(os.path.realpath(path)):
        raise denied(path)
    REAL["rmdir"](path, dir_fd=dir_fd)


def fsync(number: int) -> None:
    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    REAL["fsync"](number)


def open_number(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    if os.path.isdir(path):
        raise denied(path)
    if flags & os.O_CREAT:
        check_name(path)
    number: int = REAL["open"](path, flags, mode, dir_fd=dir_fd)
    return number


def open_file(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
    if str(file).startswith("/proc/"):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(file))
    if "b" not in mode and mode[0] != "r":
        buffering, encoding, errors, newline = [*rest, *[None] * 4][:4]
        newline = named.pop("newline", newline)
        named = {"encoding": encoding, "errors": errors, **named, "newline": "\r\n" if newline is None else newline}
        rest = (-1 if buffering is None else buffering,)
    if mode[0] != "r" and not isinstance(file, int):
        check_name(file)
    return REAL_IO(file, mode, *rest, **named)


def link(*paths: Any, **named: Any) -> None:
    raise OSError(errno.EINVAL, "A required privilege is not held by the client")


def check_name(path: Any) -> None:
    """A new name in the folder that the test works in."""
    from edgevlm.io.names import folded, unportable

    place = Path(os.path.abspath(os.fsdecode(path)))
    if not place.is_relative_to(HOME) or not place.parent.is_dir():
        return
    assert unportable([place.name]) is None, f"Windows cannot have {place}"
    twins = {name for name in os.listdir(place.parent) if folded(name) == folded(place.name)} - {place.name}
    assert not twins, f"{place} and {twins} are one"


def locking(number: int, mode: int, count: int) -> None:
    """msvcrt's, which refuses a byte that another handle has locked, another of this process among them."""
    assert (mode, count) == (2, 1)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None


class NoModules:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in NO_MODULES:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def install() -> None:
    import edgevlm.io.names  # noqa: F401  (before the rules that need it)

    PIL.Image.init()
    usage = shutil.disk_usage
    room = usage(HOME)
    for name, call in {
        "open": open_number, "rename": rename, "replace": replace, "unlink": unlink, "remove": unlink, "rmdir": rmdir,
        "fsync": fsync, "symlink": link, "link": link,
    }.items():  # fmt: skip
        setattr(os, name, call)
    for name in NO_CALLS.split():
        if hasattr(os, name):
            delattr(os, name)
    io.open = builtins.open = open_file  # type: ignore[assignment]
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    shutil.disk_usage = lambda path: room  # type: ignore[assignment]
    asyncio.ProactorEventLoop = asyncio.SelectorEventLoop  # type: ignore[attr-defined]  # only Windows has the former
    msvcrt: Any = types.ModuleType("msvcrt")
    msvcrt.LK_NBLCK, msvcrt.locking = 2, locking
    for name in NO_MODULES:
        sys.modules.pop(name, None)
    sys.modules["msvcrt"] = msvcrt
    sys.meta_path.insert(0, NoModules())  # type: ignore[arg-type]
    sys.platform = "win32"
    warnings.filterwarnings("error", category=EncodingWarning, module=r"edgevlm(\.|$)")


def run(commands: Sequence[Sequence[str]]) -> list[int]:
    from edgevlm.__main__ import main

    codes = []
    for words in commands:
        sys.argv = ["edgevlm", *words]
        try:
            codes.append(int(main() or 0))
        except SystemExit as end:
            codes.append(int(end.code or 0))
    return codes


HOME = Path(os.getcwd())

if __name__ == "__main__":
    print(f"playing Windows with onnx {onnx.__version__}, rich {rich.console.Console.__name__}", file=sys.stderr)
    tempfile.tempdir = None
    lines = json.loads(sys.argv[1])
    install()
    result = run(lines)
    print("\n" + json.dumps(result))
