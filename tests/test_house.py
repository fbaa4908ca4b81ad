"""Which package may import which, and how long a module may be."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = {"edgevlm": "edgevlm", "export": "edgevlm.export", "runtimes": "edgevlm.runtimes"}

# What everything may import, and, for each package, the others that it may. The commands may import everything.
ANYONE = {"edgevlm", "edgevlm.types", "edgevlm.errors"}
ARROWS = {
    "io": set(),
    "models": {"io"},
    "inputs": {"models", "io"},
    "scenes": {"io"},
    "bundle": {"inputs", "models", "io"},
    "checkpoint": {"inputs", "models", "io"},
    "runtimes": {"bundle", "inputs", "models", "io"},
    "generate": {"runtimes", "bundle", "inputs", "models", "io"},
    "serve": {"generate", "runtimes", "bundle", "inputs", "io"},
    "label": {"generate", "bundle", "inputs", "io"},
    "evaluation": {"generate", "runtimes", "bundle", "inputs", "io", "scenes"},
    "bench": {"generate", "runtimes", "bundle", "inputs", "models", "io"},
    "verify": {"evaluation", "generate", "runtimes", "bundle", "inputs", "models", "io", "scenes"},
    "report": {"verify", "evaluation", "bench", "generate", "runtimes", "bundle", "inputs", "io", "scenes"},
    "export": {"checkpoint", "verify", "runtimes", "bundle", "inputs", "models", "io", "scenes"},
    "train": {"checkpoint", "export.quantize", "bundle", "inputs", "models", "io", "scenes"},
}
MOST_LINES = 350

# Known exceptions, to be removed one by one: an entry that is no longer needed fails, too.
WRONG_ARROWS: set[tuple[str, str]] = set()  # (importing module, imported module)
LONG_MODULES: set[str] = set()


@cache
def modules() -> dict[str, Path]:
    """Every module that ships, by dotted name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


@cache
def imported(module: str) -> frozenset[str]:
    """The project's modules that one module imports anywhere, in functions and for type checking, too."""
    found = set()
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & modules().keys()
            if names - modules().keys():
                found.add(node.module or "")
    return frozenset((found & modules().keys()) - {module})


def package(module: str) -> str:
    """The package below edgevlm that a module belongs to; "" for a module beside the packages."""
    parts = module.split(".")[1:]
    is_package = modules()[module].name == "__init__.py"
    return parts[0] if len(parts) > 1 or (parts and is_package) else ""


def test_every_package_has_its_arrows() -> None:
    assert {package(module) for module in modules()} - {"", "commands"} == set(ARROWS)


def test_packages_import_along_the_arrows() -> None:
    wrong = set()
    for module in modules():
        if package(module) in ("", "commands"):
            continue
        allowed = ARROWS[package(module)] | {package(module)}
        for target in imported(module) - ANYONE:
            below = target.removeprefix("edgevlm.")
            if not any(f"{below}.".startswith(f"{name}.") for name in allowed):
                wrong.add((module, target))
    assert wrong == WRONG_ARROWS


def test_modules_beside_the_packages_import_only_what_they_must() -> None:
    for module in modules():
        if package(module) == "" and module not in ("edgevlm.cli", "edgevlm.__main__", "edgevlm.api"):
            assert imported(module) <= ANYONE, f"{module} is for everyone and may depend on nothing"


def test_no_circle() -> None:
    try:
        TopologicalSorter({module: imported(module) for module in modules()}).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_no_module_is_long() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules().values()}
    long = {path.relative_to(ROOT).as_posix() for path, length in lengths.items() if length > MOST_LINES}
    assert long == LONG_MODULES


# Who may name families: each family's own file, llama.cpp's names of its projectors and pre-tokenizers, the reader of
# training data in the form that a family's authors published, and the table of limits, whose reasons are real models.
FAMILIES = (
    "smolvlm",
    "idefics3",
    "llava",
    "internvl",
    "qwen2_vl",
    "qwen2_5",
    "qwen2.5",
    "qwen3_vl",
    "deepseek",
    "nanovlm",
    "gemma3",
    "minicpm",
    "paligemma",
    "moondream",
)
NAMING = {
    "edgevlm.export.gguf_.pre_tokenizers",
    "edgevlm.runtimes.llama.names",
    "edgevlm.train.conversations",
    "edgevlm.io.limits",
}


def test_a_family_is_named_in_its_own_file_only() -> None:
    """In code, comments and docstrings."""
    texts = {module: path.read_text(encoding="utf-8").lower() for module, path in modules().items()}
    naming = {module for module, text in texts.items() if any(family in text for family in FAMILIES)}
    assert {module for module in naming if not module.startswith("edgevlm.checkpoint.families")} == NAMING
