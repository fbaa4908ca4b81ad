"""EdgeVLM: one vision-language model, every edge runtime, proven equal."""

from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.2.0"

# An un-installed checkout keeps export/ and runtimes/ beside this folder; an installed package never takes this branch.
_root = Path(__file__).parent.parent
if (_root / "pyproject.toml").is_file() and not (Path(__file__).parent / "export").exists():
    __path__.append(str(_root))

# Imported when they are first asked for: the engines' arrays take longer than the rest of a short program.
_LAZY = {
    **dict.fromkeys(("load", "Model", "Request", "BundleInfo"), "edgevlm.api"),
    **dict.fromkeys(("AskOptions", "Chat"), "edgevlm.generate.chat"),
    **dict.fromkeys(("Answer", "AnswerStream"), "edgevlm.generate.answer"),
    "EdgeVLMError": "edgevlm.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edgevlm' has no attribute '{name}'")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_LAZY]
