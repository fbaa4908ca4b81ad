"""The one exception for everything a user can cause."""

from typing import Any


class EdgeVLMError(Exception):
    """One sentence: what happened, what was expected, what to do. The CLI prints it and exits with 2."""


class EdgeVLMWarning(UserWarning):
    """One sentence that a user should read although the work goes on. The CLI prints it to standard error."""


class GateError(EdgeVLMError):
    """An artifact missed a bound of the gate. The CLI prints `report`, the gate's table, and exits with 1."""

    report: Any = None
