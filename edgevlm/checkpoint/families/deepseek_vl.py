"""DeepSeek-VL 1.3B (arXiv 2403.05525): a SigLIP tower, two linear maps, a Llama decoder."""

from __future__ import annotations

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.decoders import is_tied, read_decoder
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Names, prefix_of
from edgevlm.checkpoint.families.towers import read_vit
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import check_side, image_spec, mean_color, processor_type
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.inputs.spec import ImageSpec
from edgevlm.inputs.squares import Fit
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Linear

HEAD, TEXT = "lm_head", "model.language_model."


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    text = config.section("text_config")
    tied = is_tied(checkpoint, config, text, f"{HEAD}.weight", f"{TEXT}embed_tokens.weight", default=True)
    decoder = read_decoder(text, tied=tied)
    return ModelSpec(
        name=checkpoint.name,
        family="deepseek_vl",
        vision=read_vit(
            config.section("vision_config"), image_size=224, patch_size=16, hidden_size=768, heads=12
        ),
        projector=(Linear("linear_1", decoder.hidden_size), Act("gelu"), Linear("linear_2", decoder.hidden_size)),
        decoder=decoder,
        image_token_id=config.count("image_token_id", 100015, least=0),
    )  # fmt: skip


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    return {
        **names.siglip(prefix_of(checkpoint, names.PATCHES)),
        "projector.linear_1": "model.aligner.linear1",
        "projector.linear_2": "model.aligner.linear2",
        **names.llama(TEXT, HEAD),
    }


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    file = files.image
    processor_type(file, "DeepseekVLImageProcessor")
    file.require(True, "do_resize", "do_pad")
    side = check_side(file, "size", file.square("size"), model)
    return image_spec(files, model, Fit(side, file.count("min_size", 14), mean_color(file)), usual=3)


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    files.check_tokens("num_image_tokens", model.image_tokens)
    return prompt_spec(files, model)


TOWERS = ("siglip_vision_model",)
FAMILY = Family(
    ("deepseek_vl",), "DeepSeek-VL 1.3B", read, tensor_names, image, prompt, names.siglip_pooling, towers=TOWERS
)
