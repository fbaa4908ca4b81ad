"""Output of the commands on standard error: messages, sizes, tables, a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgevlm.errors import EdgeVLMError

if TYPE_CHECKING:  # needs numpy, which --help does without
    from edgevlm.types import Progress


def note(text: str = "") -> None:
    """One line on standard error."""
    print(text, file=sys.stderr, flush=True)


def run_module(call: Callable[[], object]) -> int:
    """The exit code of a `python -m` module: its result is printed, or an EdgeVLMError, with code 2."""
    try:
        print(call())
    except EdgeVLMError as error:
        note(str(error))
        return 2
    return 0


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
    """Aligned columns; a column whose every cell starts with a digit aligns right."""
    lines = [[str(cell) for cell in row] for row in ([head] if head else []) + list(rows)]
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
def progress_bar() -> Iterator[Progress]:
    """A bar per stage on standard error where that is a terminal; silent elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield progress
