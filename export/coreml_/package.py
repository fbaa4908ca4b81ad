"""From a MIL program to a `.mlpackage` on disk, through coremltools' exporter but without its passes.

The graph is authored as it should run, so no pass has work left; skipping them keeps operation names, keeps
weights from being materialized, and takes seconds off an export. The folder is written here, because
coremltools gives each package random identifiers and the same export should give the same bytes.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from edgevlm.errors import EdgeVLMError, install_hint
from edgevlm.runtimes.coreml.library import import_coremltools

SPECIFICATION_VERSION = 9  # iOS 18, macOS 15: states, SDPA, per-block weights, multifunction
_NAMESPACE = uuid.UUID("6f0a3a9e-2f5b-5d0c-9a3e-0c0de5e1edfe")  # of package identifiers; any constant will do
_AUTHOR = "com.apple.CoreML"


@dataclass(frozen=True)
class Mil:
    """The parts of coremltools that emit programs."""

    ct: ModuleType
    mb: Any  # the builder
    types: Any
    Function: Any
    Program: Any
    new_symbol: Callable[[], Any]


def load_coremltools() -> Mil:
    """Import coremltools when a CoreML export begins; EdgeVLMError says how to install it."""
    try:
        ct = import_coremltools()
        from coremltools.converters.mil import Builder as mb
        from coremltools.converters.mil.mil import Function, Program, get_new_symbol, types
    except ImportError:
        raise EdgeVLMError(
            "The CoreML target needs the package coremltools (9.0 or later), which is not installed: "
            f"{install_hint('coreml')}."
        ) from None
    mb.name_count.clear()  # names count up across a process, and the same export should give the same names
    return Mil(ct, mb, types, Function, Program, get_new_symbol)


def save_package(mil: Mil, functions: dict[str, Any], folder: Path, default: str | None = None) -> None:
    """Write `functions` (pymil functions by name) as the `.mlpackage` `folder`, which must not exist.

    One function named "main" gives a plain package, several a multifunction one; consts that carry the same
    `weight_id` are stored once.
    """
    from coremltools.converters.mil.backend.mil import load as backend

    program = mil.Program()
    for name, function in functions.items():
        program.add_function(name, function)
    program.skip_all_passes = True
    program.default_function_name = default or next(iter(functions))
    program.export_as_multifunction = list(functions) != ["main"]
    program._check_early_error_out_for_invalid_program()
    inner = folder / "Data" / _AUTHOR
    (inner / "weights").mkdir(parents=True)
    spec = backend.load(program, str(inner / "weights"), specification_version=SPECIFICATION_VERSION)
    spec.description.metadata.author = "edgevlm"
    (inner / "model.mlmodel").write_bytes(spec.SerializeToString(deterministic=True))
    manifest = json.dumps(_manifest(folder.name), indent=4) + "\n"
    (folder / "Manifest.json").write_text(manifest, encoding="utf-8", newline="\n")


def _manifest(name: str) -> dict[str, Any]:
    def entry(path: str, description: str) -> tuple[str, dict[str, str]]:
        identifier = str(uuid.uuid5(_NAMESPACE, f"{name}/{path}")).upper()
        inner = f"{_AUTHOR}/{path}"
        return identifier, {"author": _AUTHOR, "description": description, "name": path, "path": inner}

    model, weights = (
        entry("model.mlmodel", "CoreML Model Specification"),
        entry("weights", "CoreML Model Weights"),
    )
    return {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": dict([model, weights]),
        "rootModelIdentifier": model[0],
    }
