"""The one exception for everything a user can cause, and how its sentences say what to install."""

from typing import Any


class EdgeVLMError(Exception):
    """One sentence: what happened, what was expected, what to do. The CLI prints it and exits with 2."""


class EdgeVLMWarning(UserWarning):
    """One sentence that a user should read although the work goes on. The CLI prints it to standard error."""


class GateError(EdgeVLMError):
    """An artifact missed a bound of the gate. The CLI prints `report`, the gate's table, and exits with 1."""

    report: Any = None


def install_hint(extra: str) -> str:
    """The end of a sentence about a missing package: how the packages of `extra` are installed.

    From source: edgevlm is not on the package index, and whoever takes that name there would be installed.
    """
    return f"run pip install '.[{extra}]' in EdgeVLM's source folder"
