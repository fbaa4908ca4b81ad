"""VipLLaVA (arXiv 2312.00784): LLaVA 1.5 on several layers of its tower, side by side."""

from __future__ import annotations

from dataclasses import replace

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import llava
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.linked import TOWERS, behind_the_layers, linked_names, read_linked
from edgevlm.checkpoint.families.tensors import Names, prefix_of
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Normalize
from edgevlm.models.spec import Norm


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    spec = read_linked(checkpoint, config, "vipllava", layer=[-2, -5, -8, -11, 6])
    norm = Normalize(Norm("layer", config.number("projector_layernorm_eps", 1e-5)))
    return replace(spec, projector=(norm, *spec.projector))


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    norm = f"{prefix_of(checkpoint, 'projector_layernorm.weight')}projector_layernorm"
    return {**linked_names(checkpoint, spec), "projector.norm": norm}


FAMILY = Family(
    ("vipllava",), "VipLLaVA", read, tensor_names, llava.image, llava.prompt, behind_the_layers, towers=tuple(TOWERS)
)
