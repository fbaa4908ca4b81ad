"""Granite-Docling of 2026: SigLIP's tower, a connector with fixed positions, levels of features for Granite's decoder.

Of the connector's two routes, the coarse one, which is the processor's own choice: 64 tokens to a tile of 512 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.decoders import MULTIPLIERS, is_tied, read_decoder
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Computed, Names, Plain, Source, prefix_of
from edgevlm.checkpoint.families.towers import marked_layers, read_vit
from edgevlm.checkpoint.families.transforms import sincos
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import check_side, dense_pages, image_spec, processor_type
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.inputs.rules import RatioTiles
from edgevlm.inputs.spec import ImageSpec, PictureText
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Linear, Normalize, Positions, Shuffle
from edgevlm.models.spec import Norm
from edgevlm.models.towers.vit import Vit

HEAD, EMBED, TOWER = "lm_head", "embed_tokens.weight", "embeddings.patch_embedding.weight"
FAKE, WHOLE, SIDE = "<fake_token_around_image>", "<global-img>", 16  # tiles per side that have tokens


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    text, section, norm = config.section("text_config"), config.section("vision_config"), Norm("layer", 1e-5)
    tied = is_tied(checkpoint, config, text, f"{HEAD}.weight", prefix_of(checkpoint, EMBED) + EMBED, default=True)
    marked = tuple(sorted(marked_layers(section, [3, 7, 10])))
    vision = read_vit(section, image_size=512, patch_size=16, hidden_size=768, heads=12, deepstack=marked)
    decoder = read_decoder(
        text, tied=tied, kind="granite", hidden=1024, inner=2048, layers=28, heads=16, kv_heads=4, vocab=133800,
        context=32768, eps=1e-5,
    )  # fmt: skip
    hidden, scale = decoder.hidden_size, section.count("scale_factor", 4)
    shuffle, last = Shuffle(scale, vision.hidden_size), Linear("linear_2", hidden)
    return ModelSpec(
        name=checkpoint.name,
        family="granite_docling",
        vision=vision,
        projector=(
            Normalize(norm),
            shuffle,
            Linear("linear_1", hidden, bias=False),
            Positions((vision.patches_per_side // scale) ** 2, hidden),
            Normalize(norm, "norm_mid"),
            Act("gelu"),
            Linear("linear_2", hidden, bias=False),
            Normalize(norm, "norm_out"),
        ),
        decoder=replace(decoder, deepstack=tuple(range(len(marked)))),
        image_token_id=config.count("image_token_id", 100337, least=0),
        deepstack=(shuffle, Normalize(norm), Linear("linear_1", hidden), Act("gelu"), last) if marked else (),
    )


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    vision, connector = spec.vision, f"{prefix_of(checkpoint, TOWER)}connector."
    (table,) = (step for step in spec.projector if isinstance(step, Positions))
    assert isinstance(vision, Vit)

    def level(part: str) -> Callable[[int], Source]:
        return lambda layer: Plain(f"{connector}coarse.deepstack_mergers.{vision.deepstack.index(layer)}.{part}")

    return {
        **names.siglip(prefix_of(checkpoint, TOWER)),
        "projector.norm": f"{connector}ln_in",
        "projector.linear_1": f"{connector}coarse.projection",
        "projector.positions": Computed(lambda: sincos(math.isqrt(table.rows), table.width)),
        "projector.norm_mid": f"{connector}ln_mid",
        "projector.linear_2": f"{connector}mlp_fc2",
        "projector.norm_out": f"{connector}ln_out",
        "projector.deepstack.{i}.norm": level("layer_norm"),
        **{f"projector.deepstack.{{i}}.{part}": level(part) for part in ("linear_1", "linear_2")},
        **names.llama(prefix_of(checkpoint, EMBED), HEAD),
    }


def unused(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    """The fine route, who would choose it, and heads for other engines."""
    tower = prefix_of(checkpoint, TOWER)
    return f"{tower}connector.fine.", f"{tower.removesuffix('vision_model.')}density_router.", "mtp."


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    file = files.image
    processor_type(file, "GraniteDoclingImageProcessor")
    file.require(True, "do_resize")
    file.require(False, "fine_route")
    side = check_side(file, "size", file.square("size") if file.value("size") else 512, model)
    least, most = file.count("min_patches", 1), file.count("max_patches", 32)
    if not file.flag("crop_to_patches", True):
        least = most = 1
    rule = RatioTiles(
        side, min(least, most), most, True, SIDE, numbered=True, dense=dense_pages(file) if most > 1 else None
    )
    return image_spec(files, model, rule, usual=3)


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    files.check_tokens("image_seq_len", model.image_tokens)
    tile = f"{FAKE}<row_{{row}}_col_{{col}}>"
    text = PictureText(tile=tile, row_close="\n", whole=f"\n{FAKE}{WHOLE}", whole_close=FAKE)
    return prompt_spec(files, model, picture=text, needed=(FAKE, WHOLE))


USUAL = dict(zip(MULTIPLIERS, (12.0, 0.263, 0.015625, 4.0), strict=True))
TYPES, TOWERS, DECODERS = ("granite_docling",), ("granite_docling_vision",), ("granite_docling_text",)
FAMILY = Family(
    TYPES, "Granite-Docling of 2026", read, tensor_names, image, prompt, unused, towers=TOWERS, decoders=DECODERS,
    multipliers=USUAL,
)  # fmt: skip
