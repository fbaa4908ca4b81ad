"""A result that a thread of its own computes meanwhile: engines work without holding up Python."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Beside(Generic[T]):
    """`function()`, begun at once. As a context, nothing of it goes on behind the block, however that ends."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function,))
        self._thread.start()

    def result(self) -> T:
        """What the function returned, as soon as it has; what it raised is raised here."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result

    def __enter__(self) -> Beside[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def _run(self, function: Callable[[], T]) -> None:
        try:
            self._result = function()
        except BaseException as error:
            self._error = error
