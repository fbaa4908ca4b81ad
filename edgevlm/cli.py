"""`edgevlm VERB`: the command line, and the one place where errors become messages and exit codes.

Exit codes: 0 done, 1 a bound of the gate was missed, 2 something the user can change, 130 interrupted, 143 terminated,
129 hung up. What stops a command lets it clean up first.
Nothing heavy is imported here or at the head of a verb's module: `--help` and mistakes answer at once.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

import click

from edgevlm import __version__
from edgevlm.commands.bench import bench
from edgevlm.commands.compose import compose
from edgevlm.commands.demo import demo
from edgevlm.commands.distill import distill
from edgevlm.commands.eval import eval
from edgevlm.commands.export import export
from edgevlm.commands.info import info
from edgevlm.commands.report import report
from edgevlm.commands.run import run
from edgevlm.commands.scenes import scenes
from edgevlm.commands.train import train
from edgevlm.commands.verify import verify
from edgevlm.errors import EdgeVLMError, GateError

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
    errno.ENAMETOOLONG: "A file name is too long{where}: choose a shorter one.",
    errno.EIO: "The device failed while reading or writing{where}: check it and run the command again.",
}

# Packages that the base install leaves out, and the extra that has them.
_EXTRAS = {"onnx": "export", "jinja2": "export", "gguf": "gguf", "coremltools": "coreml"}


class _Verbs(click.Group):
    """A group that answers an unknown verb with the nearest one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            near = difflib.get_close_matches(args[0], self.commands, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(self.commands)}."
            raise EdgeVLMError(f"There is no verb '{args[0]}': {hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgevlm", message="%(prog)s %(version)s")
def edgevlm() -> None:
    """Export small vision-language models to edge runtimes, prove the export, and run it.

    \b
      edgevlm demo                                            export, check and ask the shipped model
      edgevlm export MODEL --target onnx -o BUNDLE            checkpoint folder or Hub id to a bundle
      edgevlm run BUNDLE photo.jpg "What is on the table?"    ask about a picture

    Answers go to standard output, everything else to standard error.
    """


for _verb in (export, run, verify, eval, bench, report, info, demo, scenes, train, distill, compose):
    edgevlm.add_command(_verb)


class _Stopped(BaseException):
    """SIGTERM or SIGHUP, as Ctrl-C is a KeyboardInterrupt."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the command, once, so that it cleans up. One that is ignored (nohup) stays so."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise _Stopped(number)

    main_thread = threading.current_thread() is threading.main_thread()  # which alone may ask for signals
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if main_thread and hasattr(signal, name)]
    before = {number: handler for number in numbers if (handler := signal.getsignal(number)) == signal.SIG_DFL}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run one command line (default: this process's own) and exit with its code."""
    args = list(sys.argv[1:] if args is None else args)
    try:
        with _stopping(), edgevlm.make_context("edgevlm", args or ["--help"]) as context:
            edgevlm.invoke(context)
        sys.stdout.flush()
        code = 0
    except click.exceptions.Exit as done:  # --help and --version
        code = done.exit_code
    except GateError as error:
        code = _say(str(error), 1)
    except EdgeVLMError as error:
        code = _say(str(error), 2)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        sentence = f"This needs the package {error.name}: install it with pip install 'edgevlm[{extra}]'."
        code = _say(sentence, 2)
    except click.UsageError as error:
        verb = error.ctx.command_path if error.ctx else "edgevlm"
        code = _say(f"{error.format_message().rstrip('.')} (see '{verb} --help').", 2)
    except click.ClickException as error:
        code = _say(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        print("Interrupted.", file=sys.stderr)
        code = 130
    except _Stopped as stopped:
        with contextlib.suppress(OSError):  # the terminal that hung up
            print("Terminated." if stopped.number == signal.SIGTERM else "Hung up.", file=sys.stderr)
        code = 128 + stopped.number
    except BrokenPipeError:
        _drop_stdout()
        code = 141  # a shell's code for SIGPIPE
    except OSError as error:
        refusal = _OS_ERRORS.get(error.errno or 0)
        if refusal is None:
            raise
        _drop_stdout()
        name = error.filename2 or error.filename  # of a copy or a rename, where it was going to
        where = f" at '{name}'" if name else ""
        code = _say(refusal.format(where=where), 2)
    sys.exit(code)


def _say(sentence: str, code: int) -> int:
    print(f"Error: {sentence}", file=sys.stderr)
    return code


def _drop_stdout() -> None:
    """Discard unwritten output, or the interpreter reports an error about it at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
