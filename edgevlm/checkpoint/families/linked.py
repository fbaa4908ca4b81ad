"""transformers' layout of three linked parts: vision_tower, multi_modal_projector (two maps) and language_model."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.decoders import is_tied, read_decoder
from edgevlm.checkpoint.families.tensors import Names, prefix_of
from edgevlm.checkpoint.families.tokens import token_key
from edgevlm.checkpoint.families.towers import ACTIVATIONS, read_axial, read_vit
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec, Tower
from edgevlm.models.projector import Act, Linear, Step
from edgevlm.models.spec import Decoder
from edgevlm.models.towers.vit import Vit

TOWERS = {"siglip_vision_model": "siglip", "clip_vision_model": "clip", "pixtral": "pixtral"}
WHOLE = {"siglip": "full", "clip": "default", "pixtral": "full"}  # every patch, and nothing else


def read_linked(
    checkpoint: Checkpoint,
    config: JsonFile,
    family: str,
    *,
    layer: int | list[int] = -2,
    image: int = 32000,
    **options: Any,
) -> ModelSpec:
    """A model of this layout. layer, image: defaults of vision_feature_layer and of the image token's id.

    options: of `read_tower`.
    """
    decoder = read_text(checkpoint, config)
    tower = chosen_layers(read_tower(config, **options), config, layer)
    return ModelSpec(
        name=checkpoint.name,
        family=family,
        vision=tower,
        projector=two_maps(config, decoder, config.flag("multimodal_projector_bias", True)),
        decoder=decoder,
        image_token_id=config.count(token_key(config, "image"), image, least=0),
    )


def two_maps(config: JsonFile, decoder: Decoder, bias: bool = True) -> tuple[Step, ...]:
    return (
        Linear("linear_1", decoder.hidden_size, bias),
        Act(config.choice("projector_hidden_act", "gelu", ACTIVATIONS)),
        Linear("linear_2", decoder.hidden_size, bias),
    )


def read_text(checkpoint: Checkpoint, config: JsonFile, kind: str = "llama", tied: bool = False) -> Decoder:
    """The decoder of text_config, which is tied where either config says so.

    kind: where text_config names none. tied: where config.json does not say.
    """
    text, prefix = config.section("text_config"), prefix_of(checkpoint, "embed_tokens.weight")
    says = text if text.flag("tie_word_embeddings", False) else config
    head, embed = f"{head_of(checkpoint)}.weight", f"{prefix}embed_tokens.weight"
    tied = is_tied(checkpoint, says, text, head, embed, tied)
    return read_decoder(text, tied=tied, usual=kind)


def read_tower(
    config: JsonFile, kind: str = "clip_vision_model", select: str = "default", key: str = "vision_config"
) -> Tower:
    """The tower of vision_config, without its final norm and without the class token that CLIP's has."""
    vision = config.section(key)
    kind = vision.choice("model_type", kind, TOWERS)
    config.choice("vision_feature_select_strategy", select, {WHOLE[kind]: WHOLE[kind]})
    if kind == "siglip":
        return read_vit(vision, image_size=224, patch_size=16, hidden_size=768, heads=12, post_norm=False)
    if kind == "pixtral":
        return read_axial(vision, merge=1)
    return read_vit(
        vision, image_size=224, patch_size=32, hidden_size=768, heads=12, eps=1e-5, act="quick_gelu",
        patch_bias=False, class_token=True, pre_norm=True, post_norm=False,
    )  # fmt: skip


def chosen_layers(vision: Tower, config: JsonFile, usual: Any) -> Tower:
    """hidden_states[layer] of the tower: -1 is after its last layer, -2 after the one before; several side by side."""
    found = config.value("vision_feature_layer", usual)
    layers = [vision.num_layers + 1 + n if type(n) is int and n < 0 else n for n in _listed(found)]
    good = 1 <= len(layers) <= limits.TAPS and all(type(n) is int and 1 <= n <= vision.num_layers for n in layers)
    if not good:
        raise config.wrong("vision_feature_layer", f"one of the tower's {vision.num_layers} layers, or a list of them")
    if len(layers) == 1:
        return replace(vision, num_layers=layers[0])
    if not isinstance(vision, Vit):
        raise config.wrong("vision_feature_layer", "one layer of a tower for any grid")
    return replace(vision, num_layers=max(layers), taps=tuple(layers))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def linked_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    projector = prefix_of(checkpoint, "linear_1.weight")
    newline = {"newline": f"{prefix_of(checkpoint, 'image_newline')}image_newline"} if spec.newline else {}
    width, patch = spec.vision.hidden_size, spec.vision.patch_size
    square = isinstance(spec.vision, Vit)
    return {
        **(names.clip(prefix_of(checkpoint, names.PATCHES)) if square else names.pixtral(checkpoint, patch, width)),
        **names.two_maps(projector),
        **newline,
        **names.llama(prefix_of(checkpoint, "embed_tokens.weight"), head_of(checkpoint)),
    }


def behind_the_layers(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    """Tensors of the tower behind the layer whose states are used."""
    if not isinstance(spec.vision, Vit):
        return ()
    tower = prefix_of(checkpoint, names.PATCHES)
    layer = re.compile(rf"{re.escape(tower)}encoder\.layers\.([0-9]{{1,4}})\.")
    found = filter(None, map(layer.match, checkpoint.names()))
    behind = {match[0] for match in found if int(match[1]) >= spec.vision.num_layers}
    return (f"{tower}post_layernorm.", f"{tower}head.", *sorted(behind))


def head_of(checkpoint: Checkpoint) -> str:
    found = (name for name in checkpoint.names() if name.endswith("lm_head.weight"))
    return next(found, "lm_head.weight").removesuffix(".weight")
