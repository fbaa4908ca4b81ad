"""Qwen3-VL (arXiv 2511.21631): a resampled table of positions and 2-D RoPE in the tower, DeepStack, M-RoPE whose axes
take turns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.decoders import is_tied, mrope_sections, read_decoder, text_of
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.qwen2_vl import AROUND_VIDEO, still
from edgevlm.checkpoint.families.tensors import Names, Plain, Source, prefix_of
from edgevlm.checkpoint.families.towers import ACTIVATIONS, marked_layers, merger, read_grid
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.checkpoint.processor.videos import with_pairs
from edgevlm.inputs.grounding import Grounding
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Normalize
from edgevlm.models.spec import Mlp, Norm
from edgevlm.models.towers.qwen_vit import QwenVit

VIDEO: dict[str, Any] = {
    "unit": 32, "tokens": 768, "together": True, "spread": "nearest", "stamp": "<{seconds} seconds>",
    "open": "<|vision_start|>", "close": "<|vision_end|>", **AROUND_VIDEO,
}  # fmt: skip


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    text, embed = text_of(config), f"{prefix_of(checkpoint, 'embed_tokens.weight')}embed_tokens.weight"
    tied = is_tied(checkpoint, config, text, "lm_head.weight", embed)
    tower = read_tower(config.section("vision_config"), levels=[8, 16, 24])
    decoder = read_decoder(
        text, tied=tied, kind="qwen3", sections=mrope_sections(text), context=128000, theta=5e5, eps=1e-6
    )
    turning = {name: replace(rope, interleaved=True) for name, rope in decoder.ropes.items()}
    decoder = replace(decoder, ropes=turning, deepstack=tuple(range(len(tower.deepstack))))
    norm, group, *maps = merger(tower, decoder.hidden_size)
    return ModelSpec(
        name=checkpoint.name,
        family="qwen3_vl",
        vision=tower,
        projector=(norm, group, *maps),
        decoder=decoder,
        image_token_id=config.count("image_token_id", 151655, least=0),
        deepstack=(group, Normalize(tower.block.norm), *maps) if tower.deepstack else (),
    )


def read_tower(config: JsonFile, levels: list[int]) -> QwenVit:
    """levels: the layers that give further levels of features, where config.json does not say."""
    rows = config.count("num_position_embeddings", 2304)
    if math.isqrt(rows) ** 2 != rows:
        raise config.wrong("num_position_embeddings", "the square of a whole number")
    act = config.choice("hidden_act", "gelu_pytorch_tanh", ACTIVATIONS)
    return read_grid(
        config,
        hidden_size=1152,
        patch_size=16,
        depth=27,
        mlp=Mlp(config.count("intermediate_size", 4304), act, gated=False, bias=True),
        norm=Norm("layer", 1e-6),
        patch_bias=True,
        table=math.isqrt(rows),
        deepstack=marked_layers(config, levels),
    )


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    return {**tower_names(checkpoint, spec), **names.llama(prefix_of(checkpoint, "embed_tokens.weight"))}


def tower_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    tower, vision = prefix_of(checkpoint, "patch_embed.proj.weight"), spec.vision
    assert isinstance(vision, QwenVit)

    def level(part: str) -> Callable[[int], Source]:
        return lambda layer: Plain(f"{tower}deepstack_merger_list.{vision.deepstack.index(layer)}.{part}")

    parts = {"norm": "norm", "linear_1": "linear_fc1", "linear_2": "linear_fc2"}
    return {
        **names.grid(tower, vision, fc1="linear_fc1", fc2="linear_fc2"),
        "vision.position_embedding": Plain(f"{tower}pos_embed.weight"),
        **{f"projector.{ours}": f"{tower}merger.{theirs}" for ours, theirs in parts.items()},
        **{f"projector.deepstack.{{i}}.{ours}": level(theirs) for ours, theirs in parts.items()},
    }


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    return with_pairs(still(files, model), files, "Qwen3VLVideoProcessor", **VIDEO)


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    return prompt_spec(files, model, grounding=Grounding("json", 1000))


TYPES, TOWERS, DECODERS = ("qwen3_vl",), ("qwen3_vl", "qwen3_vl_vision"), ("qwen3_vl_text",)
FAMILY = Family(TYPES, "Qwen3-VL", read, tensor_names, image, prompt, towers=TOWERS, decoders=DECODERS)
