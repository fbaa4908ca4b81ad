"""FastVLM (arXiv 2412.13303) in transformers' layout: timm's FastViT of five stages, two maps, a Qwen2 decoder."""

from __future__ import annotations

import math

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import llava, names
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.fastvit import TIMM, fastvit, fastvit_names
from edgevlm.checkpoint.families.linked import head_of, read_text, two_maps
from edgevlm.checkpoint.families.tensors import Names, prefix_of
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.towers.conv_vit import ConvVit

DEPTHS = {"fastvit_mci3": (2, 12, 24, 4, 2), "fastvit_mci4": (2, 12, 24, 4, 4)}
WIDTHS = {"fastvit_mci3": (96, 192, 384, 768, 1536), "fastvit_mci4": (128, 256, 512, 1024, 2048)}
STEM = "stem.0.reparam_conv.weight"


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    config.choice("vision_feature_select_strategy", "full", {"full": "full"})
    config.choice("vision_feature_layer", -1, {-1: "last"})
    decoder = read_text(checkpoint, config, "qwen2")
    return ModelSpec(
        name=checkpoint.name,
        family="fast_vlm",
        vision=_tower(config),
        projector=two_maps(config, decoder, config.flag("multimodal_projector_bias", True)),
        decoder=decoder,
        image_token_id=config.count("image_token_index", 151646, least=0),
    )


def _tower(config: JsonFile) -> ConvVit:
    """timm's options but for depths and widths are those of the architecture; kernels have to be folded already."""
    vision = config.section("vision_config")
    kind = vision.choice("architecture", "fastvit_mci3", {name: name for name in DEPTHS})
    options = vision.section("model_args")
    if other := sorted(set(options.data) - {"inference_mode", "layers", "embed_dims"}):
        raise options.wrong(other[0], "nothing but inference_mode, layers and embed_dims")
    options.require(True, "inference_mode")
    depths, widths = options.counts("layers", DEPTHS[kind]), options.counts("embed_dims", WIDTHS[kind])
    tokens = config.count("image_seq_length", 576, most=limits.PATCHES)
    if (side := math.isqrt(tokens)) ** 2 != tokens:
        raise config.wrong("image_seq_length", "the square of a whole number")
    return fastvit(widths, depths, side * 2 ** (len(widths) + 1))


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    assert isinstance(spec.vision, ConvVit)
    return {
        **fastvit_names(TIMM, prefix_of(checkpoint, STEM), spec.vision),
        **names.two_maps(prefix_of(checkpoint, "linear_1.weight")),
        **names.llama(prefix_of(checkpoint, "embed_tokens.weight"), head_of(checkpoint)),
    }


FAMILY = Family(("fast_vlm",), "FastVLM", read, tensor_names, llava.image, llava.prompt, towers=("timm_wrapper",))
