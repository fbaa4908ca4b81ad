"""LLaVA-OneVision (arXiv 2408.03326): as LLaVA-NeXT, with large maps of features scaled down."""

from __future__ import annotations

import re
from dataclasses import replace

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.linked import TOWERS, behind_the_layers, linked_names, read_linked
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import check_side, image_spec, mean_color, offered_grids, processor_type
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.checkpoint.processor.videos import with_squares
from edgevlm.inputs.packing import Packing
from edgevlm.inputs.rules import BestGrid
from edgevlm.inputs.spec import ImageSpec
from edgevlm.inputs.squares import Pad
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec

SIDES = range(384, 2305, 384)
PINPOINTS = [[high, wide] for high in SIDES for wide in SIDES]  # of the config's and the processor's class


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    usual = {"kind": "siglip_vision_model", "select": "full"}
    return replace(read_linked(checkpoint, config, "llava_onevision", layer=-1, image=151646, **usual), newline=True)


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    file = files.image
    processor_type(file, "LlavaOnevisionImageProcessor")
    file.require(True, "do_resize")
    side = check_side(file, "size", file.square("size"), model)
    rule = BestGrid(side, offered_grids(files, side, PINPOINTS))
    spec = image_spec(files, model, rule, usual=3)
    spec = replace(spec, packing=Packing(_most(files)), several=Pad(side, mean_color(file)))
    return with_squares(
        spec, files, model, "LlavaOnevisionVideoProcessor", most=32, spread="starts", apart=False, pooled=True, open="",
        token="<video>",
    )  # fmt: skip


def _most(files: ProcessorFiles) -> int:
    """Of "anyres_max_9", which the model and its processor must agree on."""
    key, usual = "vision_aspect_ratio", "anyres_max_9"
    found = files.config.value(key, usual)
    if files.processor.value(key, found) != found:
        raise files.processor.wrong(key, f"the {found!r} of config.json")
    match = re.fullmatch("anyres_max_([0-9]{1,3})", found) if isinstance(found, str) else None
    if match is None or not 1 <= int(match[1]) <= limits.GRID_TILES:
        raise files.config.wrong(key, "'anyres_max_' and a number of views")
    return int(match[1])


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    files.check_tokens("num_image_tokens", model.image_tokens)
    return prompt_spec(files, model)


FAMILY = Family(
    ("llava_onevision",), "LLaVA-OneVision", read, linked_names, image, prompt, behind_the_layers, towers=tuple(TOWERS)
)
