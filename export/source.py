"""What the gate reads again of a checkpoint: a module of its own, so that no fault of the export enters it."""

from __future__ import annotations

from pathlib import Path

from edgevlm.checkpoint.adapter import Base, LoraAdapter
from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import read_image_spec, read_prompt_spec
from edgevlm.checkpoint.processor.images import with_newline
from edgevlm.checkpoint.processor.prompts import with_markers
from edgevlm.models.model import ModelSpec
from edgevlm.models.ops import Weights
from edgevlm.types import F32
from edgevlm.verify.adapter import MergedAdapter, SmallMerge
from edgevlm.verify.inputs import Source


def read_source(folder: Path, spec: ModelSpec, weights: Weights) -> Source:
    """The image rules, prompt rules and tokenizer of the checkpoint in `folder`, which has these weights."""
    image = with_newline(read_image_spec(folder, spec), weights)
    prompt = with_markers(read_prompt_spec(folder, spec), spec, weights)
    return Source(image, prompt, folder / "tokenizer.json")


def read_adapter(checkpoint: Checkpoint) -> MergedAdapter | None:
    """The tensors of the checkpoint with its adapter merged, if it has one."""
    adapter = checkpoint.adapter
    if adapter is None:
        return None
    names = frozenset(checkpoint.names())
    return MergedAdapter(checkpoint.folder, adapter.folder, names, adapter.changed, checkpoint.read, _replay)


def _replay(small: SmallMerge) -> dict[str, F32]:
    shapes = {name: tensor.shape for name, tensor in small.tensors.items()}
    adapter = LoraAdapter(small.adapter, Base("the recorded model", shapes, small.embed, small.head, small.tied))
    names = [*shapes, *adapter.added()]
    return {name: adapter.apply(name, lambda stored: small.tensors[stored].copy()) for name in names}
