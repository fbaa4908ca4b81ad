"""Granite Vision 4: queries that attend inside windows of several of the tower's states, one set for each of several
layers of Granite's decoder, and LLaVA-NeXT's tiles whose rows end in a newline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import llava_next, names
from edgevlm.checkpoint.families.decoders import MULTIPLIERS, is_tied, read_decoder
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.granite4_levels import LEVEL, read_levels, read_queries
from edgevlm.checkpoint.families.linked import behind_the_layers, read_tower
from edgevlm.checkpoint.families.tensors import Names, Plain, prefix_of
from edgevlm.checkpoint.families.tokens import token_key
from edgevlm.checkpoint.families.transforms import Repeated
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.towers.vit import Vit
from edgevlm.models.window_queries import WindowQueries

HEAD, EMBED = "lm_head", "embed_tokens.weight"


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    text = config.section("text_config")
    tied = is_tied(checkpoint, config, text, f"{HEAD}.weight", prefix_of(checkpoint, EMBED) + EMBED)
    decoder = read_decoder(text, tied=tied, kind="granite")
    vision = read_tower(config)
    if not isinstance(vision, Vit) or vision.class_token:
        raise config.section("vision_config").wrong("model_type", "'siglip_vision_model'")
    maps = sorted(read_levels(config, vision.num_layers), key=lambda level: level[1])
    targets = [target for _, target, _, _ in maps]
    if targets[0] != 0 or len(set(targets)) < len(targets):
        raise config.wrong(
            "deepstack_layer_map", "pairs that lead to different layers of the decoder, one to its first"
        )
    taps = sorted({layer for layer, *_ in maps})
    return ModelSpec(
        name=checkpoint.name,
        family="granite4_vision",
        vision=replace(vision, num_layers=max(taps), taps=tuple(taps) if len(taps) > 1 else ()),
        projector=(read_queries(config, vision.hidden_size, decoder.hidden_size, taps, maps),),
        decoder=replace(decoder, deepstack=tuple(target - 1 for target in targets[1:])),
        image_token_id=config.count(token_key(config, "image"), 32000, least=0),
        newline=True,
    )


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    (queries,), layers = spec.projector, JsonFile(checkpoint.folder / "config.json", checkpoint.config)
    assert isinstance(queries, WindowQueries)
    count = layers.section("vision_config").count("num_hidden_layers", 12)
    stems = [level[3] for level in sorted(read_levels(layers, count), key=lambda level: level[1])]
    prefix = prefix_of(checkpoint, "image_newline")

    def bare(name: str, side: int) -> Any:
        return lambda i: Plain(f"{prefix}{stems[i]}{name}", (1, side**2, queries.width))

    def part(name: str) -> Any:
        return lambda i: Plain(f"{prefix}{stems[i]}{name}")

    return {
        **names.siglip(prefix_of(checkpoint, names.PATCHES)),
        **{f"projector.levels.{{i}}.{ours}": part(theirs) for ours, theirs in LEVEL.items()},
        "projector.levels.{i}.query": bare("query", queries.query),
        "projector.levels.{i}.positions": bare("image_positions", queries.window),
        "newline": Repeated(f"{prefix}image_newline", len(stems)),
        **names.llama(prefix_of(checkpoint, EMBED), HEAD),
    }


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    (queries,) = model.projector
    assert isinstance(queries, WindowQueries)
    rate = f"{queries.query}/{queries.window}"
    if files.processor.value("downsample_rate", rate) != rate:
        raise files.processor.wrong("downsample_rate", f"'{rate}', as config.json has")
    return prompt_spec(files, model)


TYPES, DECODERS, USUAL = ("granite4_vision",), ("granite4_vision_text",), dict.fromkeys(MULTIPLIERS, 1.0)
FAMILY = Family(
    TYPES, "Granite Vision 4", read, tensor_names, llava_next.image, prompt, behind_the_layers, decoders=DECODERS,
    multipliers=USUAL, raw=True,
)  # fmt: skip
