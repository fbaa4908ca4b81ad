"""Janus and Janus-Pro (arXiv 2501.17811), the part that understands pictures: SigLIP's layers, linear maps, a Llama."""

from __future__ import annotations

from dataclasses import replace

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.decoders import is_tied, read_decoder
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Names
from edgevlm.checkpoint.families.towers import ACTIVATIONS, read_vit
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import check_side, image_spec, mean_color, processor_type
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.inputs.spec import ImageSpec, PictureText
from edgevlm.inputs.squares import Fit
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Linear, Step

HEAD, TEXT, TOWER = "lm_head", "model.language_model.", "model.vision_model."
GENERATION = ("model.vqmodel.", "model.generation_")
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language.\n\n"
)


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    text, section = config.section("text_config"), config.section("vision_config")
    section.require(False, "use_qk_norm")
    section.require(True, "attention_bias")
    tied = is_tied(checkpoint, config, text, f"{HEAD}.weight", f"{TEXT}embed_tokens.weight", default=True)
    inner = int(section.count("hidden_size", 1024) * section.number("mlp_ratio", 4.0))
    tower = read_vit(
        section.without("intermediate_size"), image_size=384, patch_size=16, hidden_size=1024, inner=inner, act="gelu"
    )
    layers = section.count("num_hidden_layers", 24, most=limits.LAYERS)
    decoder = read_decoder(text, tied=tied)
    return ModelSpec(
        name=checkpoint.name,
        family="janus",
        vision=replace(tower, num_layers=layers),
        projector=_aligner(section, decoder.hidden_size),
        decoder=decoder,
        image_token_id=config.count("image_token_id", 100581, least=0),
    )


def _aligner(section: JsonFile, width: int) -> tuple[Step, ...]:
    act = Act(section.choice("hidden_act", "gelu", ACTIVATIONS))
    rows = section.count("projection_dim", 2048)
    steps: list[Step] = [Linear("linear_1", rows)]
    for number in range(2, section.count("depth", 2, most=limits.PROJECTOR_STEPS // 2) + 1):
        steps += [act, Linear(f"linear_{number}", rows)]
    return tuple(steps)


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    depth = sum(isinstance(step, Linear) for step in spec.projector)
    return {
        **names.siglip(TOWER),
        "vision.layers.{i}.o": f"{TOWER}encoder.layers.{{i}}.self_attn.projection_layer",
        "projector.linear_1": "model.aligner.fc1",
        **{f"projector.linear_{n}": f"model.aligner.hidden_layers.{n - 2}" for n in range(2, depth + 1)},
        **names.llama(TEXT, HEAD),
    }


def unused(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    return GENERATION


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    file = files.image
    processor_type(file, "JanusImageProcessor")
    file.require(True, "do_resize", "do_pad")
    side = check_side(file, "size", file.square("size"), model)
    return image_spec(files, model, Fit(side, file.count("min_size", 14), mean_color(file)), usual=3)


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    files.check_tokens("num_image_tokens", model.image_tokens)
    around = PictureText(open="<begin_of_image>", close="<end_of_image>")
    found = prompt_spec(files, model, picture=around, needed=(around.open, around.close))
    if not files.processor.flag("use_default_system_prompt", False):
        return found
    chat = replace(found.spec.chat, prefix=SYSTEM + found.spec.chat.prefix)
    return found._replace(spec=replace(found.spec, chat=chat))


TITLE, TOWERS = "Janus and Janus-Pro, for understanding pictures", ("janus_vision_model",)
FAMILY = Family(("janus",), TITLE, read, tensor_names, image, prompt, unused, towers=TOWERS)
