"""Qwen2.5-VL (arXiv 2502.13923): any grid, window attention, 2-D RoPE in the tower, M-RoPE in the decoder."""

from __future__ import annotations

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families.decoders import is_tied, mrope_sections, read_decoder, text_of
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.qwen2_vl import TEXT, merged_names, still, with_run
from edgevlm.checkpoint.families.tensors import Names, prefix_of
from edgevlm.checkpoint.families.towers import merger, read_grid
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.inputs.grounding import Grounding
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Take
from edgevlm.models.spec import Mlp, Norm
from edgevlm.models.towers.qwen_vit import QwenVit


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    text, embed = text_of(config), f"{prefix_of(checkpoint, 'embed_tokens.weight')}embed_tokens.weight"
    tied = is_tied(checkpoint, config, text, "lm_head.weight", embed, text.flag("tie_word_embeddings", False))
    decoder = read_decoder(text, tied=tied, kind="qwen2", sections=mrope_sections(text), **TEXT)
    tower = _tower(config.section("vision_config"))
    return ModelSpec(
        name=checkpoint.name,
        family="qwen2_5_vl",
        vision=tower,
        projector=(*merger(tower, decoder.hidden_size), Take("order")),
        decoder=decoder,
        image_token_id=config.count("image_token_id", 151655, least=0),
    )


def _tower(config: JsonFile) -> QwenVit:
    config.choice("hidden_act", "silu", {"silu": "silu"})
    full = config.value("fullatt_block_indexes")
    if full is not None and not (isinstance(full, list) and all(type(i) is int for i in full)):
        raise config.wrong("fullatt_block_indexes", "a list of layers")
    patch, merge, window = (
        config.count(key, usual) for key, usual in (("patch_size", 14), ("spatial_merge_size", 2), ("window_size", 112))
    )
    if window < merge * patch:
        raise config.wrong("window_size", f"at least the {merge * patch} pixels of a token")
    return read_grid(
        config,
        hidden_size=3584,
        mlp=Mlp(config.count("intermediate_size", 3420), bias=True),
        norm=Norm("rms", 1e-6),
        window=window // merge // patch * merge,
        full=(7, 15, 23, 31) if full is None else tuple(full),
    )


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    return merged_names(checkpoint, spec, gate="gate_proj", up="up_proj", down="down_proj")


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    pace = files.config.section("vision_config").number("tokens_per_second", 4.0, least=1e-3, most=1000.0)
    return with_run(files, still(files, model), pace)


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    return prompt_spec(files, model, grounding=Grounding("json"))  # in pixels of the resized picture


TYPES, TOWERS, DECODERS = ("qwen2_5_vl",), ("qwen2_5_vl", "qwen2_5_vl_vision"), ("qwen2_5_vl_text",)
FAMILY = Family(TYPES, "Qwen2.5-VL", read, tensor_names, image, prompt, towers=TOWERS, decoders=DECODERS)
