"""A SmolVLM bundle holds what it held before graphs were derived from a description: weights byte for byte, graphs in
canonical form. unchanged.json was made by this file's `fingerprint` at the last commit before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cases import heavy_but

RECORDED = Path(__file__).parent / "unchanged.json"


def fingerprint(bundle: Path) -> dict[str, str]:
    """sha256 by part of a bundle: data files, graphs without names and order, GGUF tensors, CoreML weights."""
    found = {}
    for path in sorted(bundle.rglob("*")):
        name = path.relative_to(bundle).as_posix()
        if path.suffix == ".onnx_data" or path.name in ("weight.bin", "embedding.bin"):
            found[name] = _sha(path.read_bytes())
        elif path.suffix == ".onnx":
            found[name] = _graph(path)
        elif path.suffix == ".gguf":
            found[name] = _gguf(path)
    return found


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _graph(path: Path) -> str:
    """A graph as the values that its outputs are computed from: operators, attributes, constants, places of weights."""
    graph = onnx.load(str(path), load_external_data=False).graph
    known: dict[str, str] = {"": ""}
    for value in graph.input:
        known[value.name] = _sha(f"input {value.name} {value.type}".encode())
    for tensor in graph.initializer:
        where = sorted((entry.key, entry.value) for entry in tensor.external_data)
        known[tensor.name] = _sha(f"{where} {tensor.data_type} {list(tensor.dims)}".encode() + tensor.raw_data)
    for node in graph.node:  # in topological order
        attributes = sorted(attribute.SerializeToString(deterministic=True).hex() for attribute in node.attribute)
        text = f"{node.domain} {node.op_type} {attributes} {[known[name] for name in node.input]}"
        for number, name in enumerate(node.output):
            known[name] = _sha(f"{number} {text}".encode())
    outputs = sorted(f"{value.name} {value.type} {known[value.name]}" for value in graph.output)
    return _sha("\n".join(outputs).encode())


def _gguf(path: Path) -> str:
    import gguf

    tensors: Iterator[Any] = iter(gguf.GGUFReader(path).tensors)
    lines = (
        f"{t.name} {t.tensor_type} {list(t.shape)} {_sha(np.ascontiguousarray(t.data).tobytes())}" for t in tensors
    )
    return _sha("\n".join(sorted(lines)).encode())


def export(model: str, quantize: str, folder: Path) -> Path:
    from edgevlm.export.pipeline import ExportOptions, export_model

    options = ExportOptions(model, folder, ("onnx", "gguf", "coreml"), quantize=quantize, gate=False)
    return export_model(options).folder


KINDS = ("fp32", "int8", "int4")


@pytest.mark.parametrize("quantize", heavy_but(["int4"], KINDS))
def test_the_default_models_bundle_is_what_it_was(quantize: str, tmp_path: Path) -> None:
    recorded = json.loads(RECORDED.read_text("utf-8"))["default"][quantize]
    assert fingerprint(export("default", quantize, tmp_path / "bundle")) == recorded


@pytest.mark.heavy
@pytest.mark.parametrize("quantize", KINDS)
def test_the_256m_shapes_bundle_is_what_it_was(quantize: str, tmp_path: Path, checkpoint_256m: Path) -> None:
    recorded = json.loads(RECORDED.read_text("utf-8"))["256M"][quantize]
    assert fingerprint(export(str(checkpoint_256m), quantize, tmp_path / "bundle")) == recorded
