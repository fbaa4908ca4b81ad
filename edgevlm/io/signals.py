"""SIGTERM, SIGHUP and SIGBREAK (Windows: Ctrl-Break, a closed window) stop a program as Ctrl-C does: it cleans up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """A signal that asks the program to end."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.words = "Hung up." if number == getattr(signal, "SIGHUP", None) else "Terminated."
        self.code = 128 + number  # a shell's


@contextmanager
def stopping() -> Iterator[None]:
    """Let the first of these signals raise `Stopped`, and ignore later ones. One that is ignored (nohup) stays so."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    main = threading.current_thread() is threading.main_thread()  # which alone may ask for signals
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if main and hasattr(signal, name)]
    before = {number: handler for number in numbers if (handler := signal.getsignal(number)) == signal.SIG_DFL}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
