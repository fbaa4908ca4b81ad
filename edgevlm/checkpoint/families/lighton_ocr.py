"""LightOnOCR: Mistral3's tower and projector before a Qwen3 decoder; a picture is one run of image tokens."""

from __future__ import annotations

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import mistral3
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import token_pixels, within_spec
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    image_token = config.count("image_token_id", 151655, least=0)
    return mistral3.read_merged(checkpoint, config.without("projector_hidden_act"), "lighton_ocr", "qwen3", image_token)


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    """Its processor does not tell the image processor how many pixels a token has: the file must."""
    if files.image.square("patch_size") != token_pixels(model):
        raise files.image.wrong("patch_size", f"the {token_pixels(model)} pixels of an image token in config.json")
    return within_spec(files, model, "PixtralImageProcessor")


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    return prompt_spec(files, model)


FAMILY = Family(("lighton_ocr",), "LightOnOCR", read, mistral3.tensor_names, image, prompt, towers=mistral3.TOWERS)
