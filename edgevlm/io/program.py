"""How a program of edgevlm ends: the one place where errors become sentences and exit codes."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable

from edgevlm import __version__
from edgevlm.errors import EdgeVLMError, GateError, install_hint
from edgevlm.io.console import drop, note, prepare_streams, write
from edgevlm.io.signals import Stopped, stopping
from edgevlm.io.text import printable

DONE, MISSED, USER, BUG, INTERRUPTED, PIPE = 0, 1, 2, 70, 130, 141
# 70 is EX_SOFTWARE of sysexits.h, 130 and 141 are a shell's codes for SIGINT and SIGPIPE.

# Errors of the operating system that a user can resolve. Any other OSError is a bug and shows its traceback.
_FULL = "The disk is full{where}: free some space or choose another place, and run the command again."
_DENIED = "Permission denied{where}: choose a place that you may write to, or change its permissions."
_OS_ERRORS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "A file grew past its size limit{where}: raise it (ulimit -f) or choose another place.",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: "The file system is read-only{where}: choose a place that you may write to.",
    errno.EMFILE: "Too many files are open{where}: raise the limit (ulimit -n) and run the command again.",
    errno.ENFILE: "Too many files are open on this machine{where}: close other programs and run the command again.",
    errno.ENAMETOOLONG: "A file name is too long{where}: choose a shorter one.",
    errno.EIO: "The device failed while reading or writing{where}: check it and run the command again.",
    errno.ENOMEM: "The machine has no memory left{where}: close other programs and run the command again.",
}
_MEMORY = (
    "The machine has no memory left for this: close other programs, allow fewer tiles or pictures, or take a smaller "
    "model."
)

# Packages that the base install leaves out, and the extra that has them.
_EXTRAS = {"onnx": "export", "jinja2": "export", "gguf": "gguf", "coremltools": "coreml", "torch": "train"}


def run_program(call: Callable[[], int | None]) -> int:
    """Call it; say on standard error what went wrong. The exit code: what `call` returns, None is 0.

    An error that nobody but us can mend shows its traceback and ends with `BUG`, so that 1 is a missed bound alone.
    """
    try:
        prepare_streams()
        with stopping():
            code = call() or DONE
        sys.stdout.flush()
        return code
    except GateError as error:
        return _say(str(error), MISSED)
    except EdgeVLMError as error:
        return _say(str(error), USER)
    except KeyboardInterrupt:
        return _say("Interrupted.", INTERRUPTED, "")
    except Stopped as stopped:
        return _say(stopped.words, stopped.code, "")
    except BrokenPipeError:
        drop(sys.stdout, sys.stderr)
        return PIPE
    except MemoryError:
        return _say(_MEMORY, USER)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            return _bug()
        return _say(f"This needs the package {error.name}: {install_hint(extra)}.", USER)
    except OSError as error:
        if sys.platform == "win32" and error.errno == errno.EINVAL and error.filename is None:
            drop(sys.stdout, sys.stderr)  # how a pipe whose reader has gone is reported there
            return PIPE
        sentence = _refusal(error)
        return _bug() if sentence is None else _say(sentence, USER)
    except (SystemExit, GeneratorExit):
        raise
    except BaseException:  # panics of Rust packages are no Exception
        return _bug()


def run_module(call: Callable[[], object]) -> int:
    """As `run_program`, for a `python -m` module, whose result is printed where it is not None."""

    def printed() -> None:
        result = call()
        if result is not None:
            write(str(result))

    return run_program(printed)


def _refusal(error: OSError) -> str | None:
    """The sentence for an error that a user can resolve."""
    if error.errno == errno.ENOENT and _nowhere():
        return "The current folder was deleted: change to another one and run the command again."
    known = _OS_ERRORS.get(error.errno or 0)
    if known is None:
        return None
    drop(sys.stdout)  # which may be what could not be written
    name = error.filename2 or error.filename  # of a copy or a rename, where it was going to
    return known.format(where=f" at '{os.fsdecode(name)}'" if isinstance(name, str | bytes) else "")


def _nowhere() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _say(sentence: str, code: int, kind: str = "Error: ") -> int:
    with contextlib.suppress(OSError):  # a reader of standard error that has gone
        note(kind + printable(sentence))
    return code


def _bug() -> int:
    with contextlib.suppress(OSError):
        note(traceback.format_exc().rstrip())
        note(f"This is a fault of edgevlm {__version__}, not yours: please report it with the lines above.")
    return BUG
