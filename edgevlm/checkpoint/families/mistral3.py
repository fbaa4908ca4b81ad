"""Mistral Small 3.1 and its kin: a Pixtral tower for any grid, 2 x 2 patches merged, breaks between rows."""

from __future__ import annotations

from dataclasses import replace

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.linked import head_of, read_text, two_maps
from edgevlm.checkpoint.families.tensors import Names, Swapped, prefix_of
from edgevlm.checkpoint.families.tokens import token_key
from edgevlm.checkpoint.families.towers import read_axial
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import within_spec
from edgevlm.checkpoint.processor.prompts import ReadPrompt, broken_lines
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Group, Linear, Normalize
from edgevlm.models.spec import Norm


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    config.choice("vision_feature_layer", -1, {-1: "last"})
    image = config.count(token_key(config, "image"), 10, least=0)
    bias = config.flag("multimodal_projector_bias", False)
    return read_merged(checkpoint, config, "mistral3", "mistral", image, bias)


def read_merged(
    checkpoint: Checkpoint, config: JsonFile, family: str, text: str, image: int, bias: bool = False
) -> ModelSpec:
    """A Pixtral tower whose patches are normed, merged by a map without bias, and go through two maps."""
    decoder = read_text(checkpoint, config, text, tied=True)
    merge = config.count("spatial_merge_size", 2, most=limits.SHUFFLE)
    tower = read_axial(config.section("vision_config"), merge)
    return ModelSpec(
        name=checkpoint.name,
        family=family,
        vision=tower,
        projector=(
            Normalize(replace(decoder.norm or Norm(), kind="rms")),
            Group(merge, tower.hidden_size),
            Linear("merger", tower.hidden_size, bias=False),
            *two_maps(config, decoder, bias),
        ),
        decoder=decoder,
        image_token_id=image,
    )


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    projector = prefix_of(checkpoint, "patch_merger.merging_layer.weight")
    group = next(step for step in spec.projector if isinstance(step, Group))
    return {
        **names.pixtral(checkpoint, spec.vision.patch_size, spec.vision.hidden_size),
        **names.two_maps(projector, norm="norm"),
        "projector.merger": Swapped(f"{projector}patch_merger.merging_layer", group.side**2),
        **names.llama(prefix_of(checkpoint, "embed_tokens.weight"), head_of(checkpoint)),
    }


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    return within_spec(files, model, "PixtralImageProcessor")


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    return broken_lines(files, model)


TITLE, TOWERS = "Mistral Small 3.1 (Mistral3)", ("pixtral",)
FAMILY = Family(("mistral3",), TITLE, read, tensor_names, image, prompt, towers=TOWERS)
