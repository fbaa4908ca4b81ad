"""coremltools, imported without what it would import beside itself."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

# What it tries to import, to convert models of theirs: seconds and hundreds of MB where they are installed.
_OTHERS = ("torch", "torchvision", "torchaudio", "torchao", "executorch", "tensorflow", "transformers", "sklearn",
           "xgboost", "libsvm", "scipy")  # fmt: skip


def import_coremltools() -> ModuleType:
    """Raises ImportError where it is not installed.

    A process whose first import of it is this one converts no models of those libraries with it, unless it has imported
    them before.
    """
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)  # off a Mac it warns eight times that it cannot predict
    try:
        with hidden(*_OTHERS):
            import coremltools
    finally:
        logger.setLevel(level)
    module: ModuleType = coremltools
    return module


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Meanwhile these packages seem not to be installed, but for those that are imported already."""
    absent = [name for name in names if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment]  # https://docs.python.org/3/reference/import.html
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
