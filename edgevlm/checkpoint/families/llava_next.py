"""LLaVA-NeXT (LLaVA 1.6) and Granite Vision 3: tiles on a grid, and rows of features that end in a newline."""

from __future__ import annotations

from dataclasses import replace

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.linked import TOWERS, behind_the_layers, linked_names, read_linked
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import check_side, image_spec, offered_grids, processor_type
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.inputs.packing import Packing
from edgevlm.inputs.rules import BestGrid
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # of the config's and the processor's class


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    return replace(read_linked(checkpoint, config, "llava_next"), newline=True)


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    file = files.image
    processor_type(file, "LlavaNextImageProcessor")
    size = file.value("size", {"shortest_edge": 224})
    shortest = size.get("shortest_edge") if isinstance(size, dict) else None
    side = check_side(file, "size", file.square("size") if shortest is None else shortest, model)
    if file.flag("do_center_crop", True):
        check_side(file, "crop_size", file.square("crop_size"), model)
    rule = BestGrid(side, offered_grids(files, side, PINPOINTS))
    return replace(image_spec(files, model, rule, usual=3), packing=Packing())


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    return prompt_spec(files, model)


FAMILY = Family(
    ("llava_next",),
    "LLaVA-NeXT and Granite Vision 3",
    read,
    linked_names,
    image,
    prompt,
    behind_the_layers,
    towers=tuple(TOWERS),
)
