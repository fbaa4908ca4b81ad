"""The one exception for everything a user can cause, its kinds, and how its sentences say what to install."""

from typing import Any


class EdgeVLMError(Exception):
    """One sentence: what happened, what was expected, what to do. The CLI prints it and exits with 2."""


class BundleError(EdgeVLMError):
    """A bundle is missing, damaged, incomplete, or of another version."""


class ImageError(EdgeVLMError):
    """What should be a picture is none, is damaged, or is too large."""


class ContextFull(EdgeVLMError):
    """A conversation does not fit the model's context. needed, limit: positions, the answer's among them."""

    def __init__(self, sentence: str, needed: int = 0, limit: int = 0) -> None:
        super().__init__(sentence)  # pickle calls with this alone, and sets the others
        self.needed, self.limit = needed, limit


class Unsupported(EdgeVLMError):
    """The model, the engine or the device cannot do what was asked for."""


class Closed(EdgeVLMError):
    """A model, a chat or a runtime was used after it was closed."""


class RuntimeFailed(EdgeVLMError):
    """An engine could not load a file, or failed while it computed."""


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
