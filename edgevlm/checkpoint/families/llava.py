"""LLaVA 1.5's layout (arXiv 2310.03744): a SigLIP or CLIP tower, a projector of two linear maps, and a decoder."""

from __future__ import annotations

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families.composed import IMAGE, Composed
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.linked import TOWERS, behind_the_layers, linked_names, read_linked
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import check_side, image_spec, mean_color, processor_type, within_spec
from edgevlm.checkpoint.processor.prompts import ReadPrompt, broken_lines, prompt_spec
from edgevlm.inputs.rules import Rule
from edgevlm.inputs.spec import ImageSpec
from edgevlm.inputs.squares import Crop, Pad, Stretch
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.towers.vit import Vit


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    return read_linked(checkpoint, config, "llava")


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    if not isinstance(model.vision, Vit):
        return within_spec(files, model, "PixtralImageProcessor")
    file = files.image
    processor_type(file, "SiglipImageProcessor", "CLIPImageProcessor", "LlavaImageProcessor")
    file.require(True, "do_resize")
    return image_spec(files, model, _rule(file, model), usual=3)


def _rule(file: JsonFile, model: ModelSpec) -> Rule:
    size = file.value("size")
    shortest = size.get("shortest_edge") if isinstance(size, dict) else None
    if file.flag("do_pad", False):
        side = shortest if type(shortest) is int else file.square("size")
        return Pad(check_side(file, "size", side, model), mean_color(file))
    if shortest is None:
        return Stretch(check_side(file, "size", file.square("size"), model))
    if type(shortest) is not int or not file.flag("do_center_crop", True):
        raise file.wrong("size", "a shortest_edge in pixels and do_center_crop")
    side = check_side(file, "crop_size", file.square("crop_size"), model)
    if shortest < side:
        raise file.wrong("size", f"at least the {side} pixels of crop_size")
    return Crop(shortest, side)


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    if not isinstance(model.vision, Vit):
        return broken_lines(files, model)
    files.check_class("LlavaProcessor")
    return prompt_spec(files, model)


COMPOSED = Composed(
    projectors=("mlp",),
    config="LlavaConfig",
    vision="SiglipVisionConfig",
    model="LlavaForConditionalGeneration",
    settings=lambda side, scale: {
        "image_seq_length": side**2, "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
    },
    images=lambda side, tokens, tiles: {
        "image_processor_type": "SiglipImageProcessor", "resample": 3, "size": {"height": side, "width": side},
    },
    processor=lambda side, tokens, tiles: {
        "processor_class": "LlavaProcessor", "image_token": IMAGE, "num_additional_image_tokens": 0,
        "patch_size": side // int(tokens**0.5), "vision_feature_select_strategy": "full",
    },
)  # fmt: skip
TITLE = "LLaVA 1.5 with a SigLIP or CLIP tower"
FAMILY = Family(
    ("llava",), TITLE, read, linked_names, image, prompt, behind_the_layers, towers=tuple(TOWERS), composed=COMPOSED
)
