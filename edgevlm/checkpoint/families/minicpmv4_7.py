"""MiniCPM-V 4.7: MiniCPM-V 4.6, whose decoder sees a picture's views on one canvas."""

from __future__ import annotations

from dataclasses import replace

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import minicpmv4_6, minicpmv4_6_files
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.minicpmv4_6 import tensor_names, unused
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.prompts import ReadPrompt
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec

ON_CANVAS = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    found = minicpmv4_6.read(checkpoint, config)
    return replace(found, family="minicpmv4_7", decoder=replace(found.decoder, places="canvas"))


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    """Videos have no number here."""
    spec = minicpmv4_6_files.image(files, model)
    return replace(spec, video=spec.video and replace(spec.video, intro=""))


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    return minicpmv4_6_files.prompt(files, model, tuple(files.config.count(key, least=0) for key in ON_CANVAS))


TYPES, TITLE, TOWERS, DECODERS = ("minicpmv4_7",), "MiniCPM-V 4.7", ("minicpmv4_7_vision",), ("qwen3_5_text",)
FAMILY = Family(TYPES, TITLE, read, tensor_names, image, prompt, unused, towers=TOWERS, decoders=DECODERS)
