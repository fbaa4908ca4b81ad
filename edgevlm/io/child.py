"""Work on a stranger's file in a second Python process, which has a deadline and a bound on its memory.

For what no check beforehand can bound: a template's loops, a codec's tables. A module does such work in a function
`answer(request: bytes) -> bytes`; what it prints, and what the libraries below it print, is dropped.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from edgevlm.io import child; child.serve()"


@dataclass(frozen=True)
class Limits:
    """seconds: of the clock, and of processor time where the system counts it.

    memory: bytes of address space, once the module is loaded; not bounded on Windows, nor by macOS.
    """

    seconds: int
    memory: int


class ChildFailed(Exception):
    """The answer did not come; `reason` follows a subject, as in "it took longer than 5 seconds"."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def ask_child(module: str, request: bytes, limits: Limits) -> bytes:
    """What `answer(request)` of a module gives, called in a process of its own. ChildFailed where it gives nothing."""
    if not sys.executable or getattr(sys, "frozen", False):  # a frozen program would start itself again
        raise ChildFailed("is read by a second Python process, which this program cannot start")
    # This package may be known to a finder of site-packages alone, which -S leaves out.
    path = [*(p for p in sys.path if isinstance(p, str)), str(Path(__file__).resolve().parents[2])]
    settings = [json.dumps(path), module, str(limits.seconds), str(limits.memory)]
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _START, *settings],
            input=request,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=limits.seconds,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"took longer than {limits.seconds} seconds") from None
    except OSError as error:
        reason = f"is read by a second Python process, which did not start ({error.strerror})"
        raise ChildFailed(reason) from None
    if done.returncode == _OUT_OF_MEMORY:
        raise ChildFailed(f"needed more than {limits.memory >> 20} MiB of memory")
    if done.returncode == _OUT_OF_TIME:
        raise ChildFailed(f"took longer than {limits.seconds} seconds")
    if done.returncode:
        raise ChildFailed(f"broke the process that reads it (code {done.returncode})")
    return done.stdout


_OUT_OF_MEMORY, _OUT_OF_TIME = 97, -24  # an exit code of our own; SIGXCPU


def serve() -> None:
    """The second process: one request from standard input, its answer to standard output."""
    module, seconds, memory = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not print into the answer
    answer = importlib.import_module(module).answer
    request = sys.stdin.buffer.read()
    if sys.platform != "win32":
        with suppress(OSError, ValueError):  # macOS refuses some
            import resource

            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    try:
        answers.write(answer(request))
        answers.close()
    except MemoryError:
        sys.exit(_OUT_OF_MEMORY)
