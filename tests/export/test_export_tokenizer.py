"""Tokenizers that would be silently wrong in a bundle: refused or settled at export, and refused when one is opened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from edgevlm.bundle.files import list_files, write_manifest
from edgevlm.bundle.manifest import open_bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.generate.loop import Pipeline
from edgevlm.runtimes import open_runtime


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data), "utf-8")


@pytest.mark.parametrize("target", ["onnx", "gguf", "coreml"])
@pytest.mark.parametrize("added", [False, True])
def test_an_id_beyond_the_table_is_refused_on_every_target(
    target: str, added: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The table has 512 rows."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    token = {"id": 512, "content": "<new>", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False}  # fmt: skip
    edit(folder, lambda d: d["added_tokens"].append(token) if added else d["model"]["vocab"].update(extra=512))
    with pytest.raises(EdgeVLMError, match=r"tokenizer\.json' gives .* the id 512, but the model has 512 embeddings"):
        export_model(ExportOptions(str(folder), tmp_path / "out", targets=(target,), gate=False))
    assert not (tmp_path / "out").exists()


def test_a_bundle_with_such_an_id_is_not_opened(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    edit(folder, lambda d: d["model"]["vocab"].update(extra=512))
    write_manifest(folder, replace(open_bundle(tiny_bundle).manifest, files=list_files(folder)))
    bundle = open_bundle(folder)
    engine = open_runtime(bundle, "eager")
    with pytest.raises(EdgeVLMError, match="gives the token 'extra' the id 512, but the model has 512 embeddings"):
        Pipeline(bundle, engine)


def test_a_bundle_has_no_dropout(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    edit(folder, lambda d: d["model"].update(dropout=0.4))
    out = export_model(ExportOptions(str(folder), tmp_path / "out", gate=False)).folder
    text = "What is in the picture, and how many of them?"
    rules = Tokenizer.from_file(str(out / "tokenizer.json"))  # as any other program reads it
    expected = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json")).encode(text).ids
    assert all(rules.encode(text).ids == expected for _ in range(10))
