"""LLaVA 1.5's layout (arXiv 2310.03744): a SigLIP or CLIP tower, a projector of two linear maps, and a decoder."""

from __future__ import annotations

import re
from dataclasses import replace

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.composed import IMAGE, Composed
from edgevlm.checkpoint.families.decoders import is_tied, read_decoder
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Names, prefix_of
from edgevlm.checkpoint.families.towers import ACTIVATIONS, read_vit
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import check_side, image_spec, mean_color, processor_type
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.inputs.rules import Crop, Pad, Rule, Stretch
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Linear
from edgevlm.models.towers.vit import Vit


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    text, prefix = config.section("text_config"), prefix_of(checkpoint, "embed_tokens.weight")
    tied = is_tied(checkpoint, config, text, f"{_head(checkpoint)}.weight", f"{prefix}embed_tokens.weight")
    decoder = read_decoder(text, tied=tied)
    bias = config.flag("multimodal_projector_bias", True)
    key = "image_token_index" if config.value("image_token_id") is None else "image_token_id"
    return ModelSpec(
        name=checkpoint.name,
        family="llava",
        vision=_used_layers(_tower(config), config),
        projector=(
            Linear("linear_1", decoder.hidden_size, bias),
            Act(config.choice("projector_hidden_act", "gelu", ACTIVATIONS)),
            Linear("linear_2", decoder.hidden_size, bias),
        ),
        decoder=decoder,
        image_token_id=config.count(key, 32000, least=0),
    )


def _tower(config: JsonFile) -> Vit:
    """As LLaVA takes it: without its final norm, and without the class token that CLIP's has."""
    vision = config.section("vision_config")
    kind = vision.choice(
        "model_type", "clip_vision_model", {"siglip_vision_model": "siglip", "clip_vision_model": "clip"}
    )
    whole = {"siglip": "full", "clip": "default"}[kind]  # every patch, and nothing else
    config.choice("vision_feature_select_strategy", "default", {whole: whole})
    if kind == "siglip":
        return read_vit(vision, image_size=224, patch_size=16, hidden_size=768, heads=12, post_norm=False)
    return read_vit(
        vision, image_size=224, patch_size=32, hidden_size=768, heads=12, eps=1e-5, act="quick_gelu",
        patch_bias=False, class_token=True, pre_norm=True, post_norm=False,
    )  # fmt: skip


def _used_layers(vision: Vit, config: JsonFile) -> Vit:
    """hidden_states[layer] of the tower: -1 is after its last layer, -2 after the one before, as in LLaVA."""
    layer = config.value("vision_feature_layer", -2)
    kept = vision.num_layers + 1 + layer if type(layer) is int and layer < 0 else layer
    if type(kept) is not int or not 1 <= kept <= vision.num_layers:
        raise config.wrong("vision_feature_layer", f"one of the tower's {vision.num_layers} layers")
    return replace(vision, num_layers=kept)


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    tower = prefix_of(checkpoint, "embeddings.patch_embedding.weight")
    projector = prefix_of(checkpoint, "linear_1.weight")
    return {
        **names.clip(tower),
        "projector.linear_1": f"{projector}linear_1",
        "projector.linear_2": f"{projector}linear_2",
        **names.llama(prefix_of(checkpoint, "embed_tokens.weight"), _head(checkpoint)),
    }


def unused(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    """Tensors of the tower behind the layer whose states are used."""
    tower = prefix_of(checkpoint, "embeddings.patch_embedding.weight")
    layer = re.compile(rf"{re.escape(tower)}encoder\.layers\.([0-9]{{1,4}})\.")
    found = filter(None, map(layer.match, checkpoint.names()))
    behind = {match[0] for match in found if int(match[1]) >= spec.vision.num_layers}
    return (f"{tower}post_layernorm.", f"{tower}head.", *sorted(behind))


def _head(checkpoint: Checkpoint) -> str:
    found = (name for name in checkpoint.names() if name.endswith("lm_head.weight"))
    return next(found, "lm_head.weight").removesuffix(".weight")


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    file = files.image
    processor_type(file, "SiglipImageProcessor", "CLIPImageProcessor", "LlavaImageProcessor")
    if not file.flag("do_resize", True):
        raise file.wrong("do_resize", "true")
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
    if files.processor.value("processor_class", "LlavaProcessor") != "LlavaProcessor":
        raise files.processor.wrong("processor_class", "LlavaProcessor")
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
TOWERS = ("siglip_vision_model", "clip_vision_model")
TITLE = "LLaVA 1.5 with a SigLIP or CLIP tower"
FAMILY = Family(("llava",), TITLE, read, tensor_names, image, prompt, unused, towers=TOWERS, composed=COMPOSED)
