"""Warnings as the command line shows them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgevlm.errors import EdgeVLMWarning
from edgevlm.io.console import note
from edgevlm.io.text import printable

MOST = 5


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """EdgeVLMWarnings as one line each on standard error, a few of them; none of what Pillow says about files."""
    shown = 0
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            nonlocal shown
            if not issubclass(category, EdgeVLMWarning):
                usual(message, category, *where)
                return
            shown += 1
            if shown <= MOST + 1:
                note(f"Note: {printable(str(message))}" if shown <= MOST else "Note: further notes are left out.")

        warnings.showwarning = show  # type: ignore[assignment]
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield
