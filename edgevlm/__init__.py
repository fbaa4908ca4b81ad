"""EdgeVLM: one vision-language model, every edge runtime, proven equal."""

from pathlib import Path

__version__ = "0.2.0"

# An un-installed checkout keeps export/ and runtimes/ beside this folder; an installed package never takes this branch.
_root = Path(__file__).parent.parent
if (_root / "pyproject.toml").is_file() and not (Path(__file__).parent / "export").exists():
    __path__.append(str(_root))
