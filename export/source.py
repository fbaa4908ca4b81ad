"""The rules of a checkpoint, read again for the gate, apart from what the export wrote."""

from __future__ import annotations

from pathlib import Path

from edgevlm.export.processor import read_image_spec, read_prompt_spec
from edgevlm.gate_inputs import Source
from edgevlm.spec import ModelSpec


def read_source(folder: Path, spec: ModelSpec) -> Source:
    """The image rules, prompt rules and tokenizer of the checkpoint in `folder`."""
    return Source(read_image_spec(folder, spec.vision), read_prompt_spec(folder, spec), folder / "tokenizer.json")
