"""LFM2-VL and LFM2.5-VL: SigLIP2's tower on any grid (arXiv 2502.14786), two maps, LFM2's decoder."""

from __future__ import annotations

import math

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import lfm2, names
from edgevlm.checkpoint.families.decoders import is_tied
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Names, Swapped, prefix_of
from edgevlm.checkpoint.families.towers import ACTIVATIONS, read_siglip2
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import image_spec, processor_type, token_pixels
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.inputs.native import NativeOrTiles
from edgevlm.inputs.spec import ImageSpec, PictureText
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Group, Linear, Normalize
from edgevlm.models.spec import Norm

HEAD, TABLE, EMBED = "lm_head", "embeddings.position_embedding.weight", "embed_tokens.weight"


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    text, old = config.section("text_config"), "tie_embedding"
    ties = config if config.value(old) is None else config.renamed(tie_word_embeddings=old)
    tied = is_tied(checkpoint, ties, text, f"{HEAD}.weight", prefix_of(checkpoint, EMBED) + EMBED, default=True)
    decoder = lfm2.read(text, tied=tied)
    config.choice("vision_feature_layer", -1, {-1: "last"})
    scale, bias = config.count("downsample_factor", 2, most=limits.SHUFFLE), config.flag("projector_bias", True)
    tower = read_siglip2(config.section("vision_config"), scale)
    norms = (Normalize(Norm("layer", 1e-5)),) if config.flag("projector_use_layernorm", True) else ()
    return ModelSpec(
        name=checkpoint.name,
        family="lfm2_vl",
        vision=tower,
        projector=(
            Group(scale, tower.hidden_size),
            *norms,
            Linear("linear_1", config.count("projector_hidden_size", 2560, most=limits.MLP_WIDTH), bias=bias),
            Act(config.choice("projector_hidden_act", "gelu", ACTIVATIONS)),
            Linear("linear_2", decoder.hidden_size, bias=bias),
        ),
        decoder=decoder,
        image_token_id=config.count("image_token_id", 396, least=0),
    )


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    tower, connector = prefix_of(checkpoint, TABLE), prefix_of(checkpoint, "linear_1.weight")
    return {
        **names.siglip(tower),
        "vision.patch_embedding": Swapped(f"{tower}embeddings.patch_embedding", 3),
        "projector.norm": f"{connector}layer_norm",
        "projector.linear_1": f"{connector}linear_1",
        "projector.linear_2": f"{connector}linear_2",
        **lfm2.tensor_names(prefix_of(checkpoint, EMBED), HEAD, spec.decoder),
    }


def unused(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    return (f"{prefix_of(checkpoint, TABLE)}head.",)  # SigLIP2's pooling


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    """Of the image processor's own settings; copies of some at the top of processor_config.json are not read."""
    file, unit = files.image, token_pixels(model)
    processor_type(file, "Lfm2VlImageProcessor")
    patch = file.count("encoder_patch_size", 16)
    if (patch, patch * file.count("downsample_factor", 2)) != (model.vision.patch_size, unit):
        raise file.wrong("encoder_patch_size", f"with downsample_factor, the {unit} pixels of a token in config.json")
    area, most = unit**2, file.count("max_image_tokens", 256, most=limits.NATIVE_PIXELS // unit**2)
    least, side = file.count("min_image_tokens", 64, most=most), file.count("tile_size", 512)
    few, many = file.count("min_tiles", 2), file.count("max_tiles", 10)
    if not file.flag("do_image_splitting", True):
        few = many = 1
    if few > many or 1 == few < many:
        raise file.wrong("min_tiles", "at least 2 and at most max_tiles, or both 1")
    if side % unit:
        raise file.wrong("tile_size", f"a multiple of the {unit} pixels of a token")
    large = math.floor(most * area * file.number("max_pixels_tolerance", 2.0))
    thumbnail = file.flag("use_thumbnail", True)
    rule = NativeOrTiles(patch, unit, least * area, most * area, large, side, few, many, thumbnail)
    return image_spec(files, model, rule, usual=2)


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    if not files.processor.flag("use_image_special_tokens", True):
        raise files.processor.wrong("use_image_special_tokens", "true")
    text = PictureText(
        "<|image_start|>", "<|img_row_{row}_col_{col}|>", whole="<|img_thumbnail|>", close="<|image_end|>"
    )
    return prompt_spec(files, model, picture=text, needed=(text.open, text.whole, text.close))


TYPES, TITLE, TOWERS, DECODERS = ("lfm2_vl",), "LFM2-VL and LFM2.5-VL", ("siglip2_vision_model",), ("lfm2",)
FAMILY = Family(TYPES, TITLE, read, tensor_names, image, prompt, unused, towers=TOWERS, decoders=DECODERS)
