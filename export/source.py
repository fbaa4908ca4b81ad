"""The rules of a checkpoint, read again for the gate: a module of its own, so that no fault of the export enters it."""

from __future__ import annotations

from pathlib import Path

from edgevlm.checkpoint.families import read_image_spec, read_prompt_spec
from edgevlm.models.model import ModelSpec
from edgevlm.verify.inputs import Source


def read_source(folder: Path, spec: ModelSpec) -> Source:
    """The image rules, prompt rules and tokenizer of the checkpoint in `folder`."""
    return Source(read_image_spec(folder, spec), read_prompt_spec(folder, spec), folder / "tokenizer.json")
