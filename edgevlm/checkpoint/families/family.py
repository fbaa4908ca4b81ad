"""What a family's file defines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families.composed import Composed
from edgevlm.checkpoint.families.tensors import Names
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.prompts import ReadPrompt
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec


def _none(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Family:
    """model_types: what config.json calls it. read: the description. tensor_names: where its weights stand.

    image, prompt: what its processor does to pictures and to conversations.
    unused: beginnings of tensor names that the files may hold and nothing reads.
    mark: a key of config.json that identifies the family where there is no model_type.
    embed: the embedding table's stem in memory, where files of a tied model keep the head alone.
    towers, decoders: what vision_config and text_config call the parts that it takes, beside `read_decoder`'s.
    multipliers: what a decoder's `MULTIPLIERS` are where the file leaves them out, if all its decoders have them.
    raw: its decoders multiply embeddings and not image features.
    composed: how `edgevlm compose` writes a model of this family, where it does.
    """

    model_types: tuple[str, ...]
    title: str  # in words, for messages and docs
    read: Callable[[Checkpoint, JsonFile], ModelSpec]
    tensor_names: Callable[[Checkpoint, ModelSpec], Names]
    image: Callable[[ProcessorFiles, ModelSpec], ImageSpec]
    prompt: Callable[[ProcessorFiles, ModelSpec], ReadPrompt]
    unused: Callable[[Checkpoint, ModelSpec], tuple[str, ...]] = _none
    mark: str | None = None
    embed: str | None = None
    towers: tuple[str, ...] = ()
    decoders: tuple[str, ...] = ()
    multipliers: Mapping[str, float] | None = None
    raw: bool = False
    composed: Composed | None = None
