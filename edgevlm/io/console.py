"""What commands print: results on standard output, everything else on standard error; sizes, tables, progress."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from edgevlm.errors import EdgeVLMError
from edgevlm.io.text import json_text, printable

if TYPE_CHECKING:  # needs numpy, which --help does without
    from edgevlm.types import Progress

QUIET_SECONDS = 30.0  # without a terminal, long work says a line this often


def prepare_streams() -> None:
    """Make standard output and error fit for any text. Raises EdgeVLMError where standard output is closed.

    A closed one is opened on nothing: its number would go to the next file, into which libraries would print.
    """
    closed = False
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
            closed |= number == 1
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for as long as the process lives)
    if closed or sys.stdout is None:
        raise EdgeVLMError("Standard output is closed: send it somewhere, such as > answer.txt or > /dev/null.")
    codecs.register_error("edgevlm", _unencodable)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test's stand-in has not
            stream.reconfigure(errors="edgevlm")


def _unencodable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of a file name that is not UTF-8 as they were; an escape for what the encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    char = error.object[error.start]
    if "\udc80" <= char <= "\udcff":
        return bytes([ord(char) - 0xDC00]), error.start + 1
    return char.encode("unicode_escape", "backslashreplace").decode("ascii"), error.start + 1


def drop(*streams: IO[str]) -> None:
    """Discard unwritten output of standard streams, or the interpreter reports an error about it at exit."""
    for stream in streams:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def write(text: str, end: str = "\n") -> None:
    """A result, on standard output. Files and pipes get `text` as it is, a terminal without control characters."""
    sys.stdout.write((printable(text, "\n\t") if sys.stdout.isatty() else text) + end)
    sys.stdout.flush()


def write_json(value: Any, indent: int | None = None) -> None:
    """A result as JSON, on standard output; in ASCII where its encoding is not UTF-8."""
    text = json_text(value, indent)
    encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name
    write(text if encoding == "utf-8" else _ascii(text))


def _ascii(text: str) -> str:
    """JSON with every other character escaped, as pairs of halves where it needs two."""
    pairs = text.encode("utf-16-be", "surrogatepass")
    units = [int.from_bytes(pairs[i : i + 2], "big") for i in range(0, len(pairs), 2)]
    return "".join(chr(unit) if unit < 128 else f"\\u{unit:04x}" for unit in units)


def note(text: str = "") -> None:
    """Lines on standard error, without control characters."""
    print(printable(text, "\n\t"), file=sys.stderr, flush=True)


def size(count: int) -> str:
    """Bytes in decimal units, as disks and the Hub are labelled."""
    if count < 1000:
        return f"{count} B"
    for unit, scale in (("kB", 1e3), ("MB", 1e6)):
        if count < 999.95 * scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e9:.1f} GB"


def seconds(value: float) -> str:
    """A duration with three figures."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1000:.0f} ms" if value >= 0.1 else f"{value * 1000:.1f} ms"


def table(rows: Sequence[Sequence[object]], head: Sequence[str] = ()) -> str:
    """Aligned columns; a column whose every cell starts with a digit aligns right. A cell is one line."""
    lines = [[printable(str(cell)) for cell in row] for row in ([head] if head else []) + list(rows)]
    if not lines:
        return ""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    body = lines[1:] if head else lines
    right = [all(cell[:1].isdigit() for cell in column) for column in zip(*body, strict=True)]
    text = []
    for line in lines:
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
        text.append("  " + "  ".join(cells).rstrip())
    if head:
        text.insert(1, "  " + "  ".join("-" * width for width in widths))
    return "\n".join(text)


@contextmanager
def progress_bar(clock: Callable[[], float] = time.monotonic) -> Iterator[Progress]:
    """On standard error: a bar per stage where that is a terminal, elsewhere a line every `QUIET_SECONDS` at most."""
    if not sys.stderr.isatty():
        last = clock()

        def line(what: str, done: int, total: int) -> None:
            nonlocal last
            if clock() - last >= QUIET_SECONDS:
                last = clock()
                note(f"{what}: {done} of {total}")

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        tasks = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(printable(what), total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield progress


Meter = Callable[[int, int, int, str], None]
"""meter(done, total, new, words): `new` of the `done` were done since the meter began; words stand at the end."""


@contextmanager
def meter(what: str, clock: Callable[[], float] = time.monotonic) -> Iterator[Meter]:
    """Progress with speed and time left, as `progress_bar` shows it: of work whose units take some time each."""
    start = clock()

    def line(done: int, total: int, new: int, words: str) -> str:
        spent = clock() - start
        left = f", {span(spent / new * (total - done))} left" if new and done < total else ""
        speed = f", {new / spent:.3g} per second{left}" if new and spent else ""
        return f"{done} of {total} {what}{speed}, {words}"

    if not sys.stderr.isatty():
        last = start

        def say(done: int, total: int, new: int, words: str) -> None:
            nonlocal last
            if clock() - last >= QUIET_SECONDS:
                last = clock()
                note(line(done, total, new, words))

        yield say
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.description}", markup=False))
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("")

        def show(done: int, total: int, new: int, words: str) -> None:
            bar.update(task, completed=done, total=total, description=printable(line(done, total, new, words)))

        yield show


def span(value: float) -> str:
    """A duration in the two units that matter."""
    minutes = round(value / 60)
    if value < 90:
        return f"{value:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 2880 else f"{minutes // 1440} d {minutes // 60 % 24} h"
