"""Model families: one file each, which turns a checkpoint's config and tensor names into a description and weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgevlm.checkpoint.adapter import Base
from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import (
    deepseek_vl,
    dots_ocr,
    fast_vlm,
    gemma3,
    gemma3n,
    gemma4,
    glm4v,
    glm_ocr,
    granite4_vision,
    granite_docling,
    hunyuan_vl,
    internvl,
    janus,
    lfm2_vl,
    lfm3_vl,
    lighton_ocr,
    llava,
    llava_next,
    llava_onevision,
    llava_qwen2,
    minicpmv,
    minicpmv4_6,
    minicpmv4_7,
    mistral3,
    moondream,
    nanovlm,
    ovis2,
    paddleocr_vl,
    paligemma,
    phi4_multimodal,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_5,
    qwen3_vl,
    smolvlm,
    vipllava,
)  # fmt: skip
from edgevlm.checkpoint.families.decoders import DECODERS, fold_multipliers
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import MappedWeights, map_tree
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.prompts import ReadPrompt
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.spec import ImageSpec, PromptSpec
from edgevlm.inputs.tokenizer_file import read_tokenizer_file
from edgevlm.io.json import JsonFile
from edgevlm.models.check import check_model
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Queries
from edgevlm.models.record import host_tree, weight_tree

FAMILIES = (
    smolvlm.FAMILY, llava.FAMILY, internvl.FAMILY, qwen2_vl.FAMILY, qwen2_5_vl.FAMILY, qwen3_vl.FAMILY, nanovlm.FAMILY,
    deepseek_vl.FAMILY, llava_next.FAMILY, llava_onevision.FAMILY, vipllava.FAMILY, janus.FAMILY, lfm2_vl.FAMILY,
    gemma3.FAMILY, gemma3n.FAMILY, paligemma.FAMILY, paddleocr_vl.FAMILY,
    mistral3.FAMILY, lighton_ocr.FAMILY, ovis2.FAMILY, fast_vlm.FAMILY, qwen3_5.FAMILY, lfm3_vl.FAMILY,
    minicpmv.FAMILY, minicpmv4_6.FAMILY, minicpmv4_7.FAMILY, gemma4.FAMILY, moondream.FAMILY,
    granite_docling.FAMILY, glm4v.FAMILY, glm_ocr.FAMILY, dots_ocr.FAMILY, llava_qwen2.FAMILY,
    granite4_vision.FAMILY, hunyuan_vl.FAMILY, phi4_multimodal.FAMILY,
)  # fmt: skip


def read_model(checkpoint: Checkpoint) -> tuple[ModelSpec, MappedWeights]:
    """The checkpoint's description, and its weights under edgevlm's canonical names (see docs/checkpoints.md).

    Raises EdgeVLMError when the family or one of its options is not supported, and when a tensor is missing,
    unknown, or of another shape than the config says.
    """
    spec, weights = read_checkpoint(checkpoint)
    if connectors := [step.connector for step in spec.projector if isinstance(step, Queries)]:
        raise EdgeVLMError(
            f"{checkpoint.name} has a {connectors[0]} as its projector, which can be trained but not exported: "
            "compose the model with --projector mlp, linear or pixel-shuffle."
        )
    return spec, weights


def read_checkpoint(checkpoint: Checkpoint) -> tuple[ModelSpec, MappedWeights]:
    """As `read_model`, for a checkpoint that is to be trained: its projector may be one that is not exported."""
    family = find_family(checkpoint.config, checkpoint.name)
    config = JsonFile(checkpoint.folder / "config.json", checkpoint.config)
    spec = family.read(checkpoint, config)
    check_model(spec, f"{checkpoint.folder}: config.json", "download it again")
    unused = family.unused(checkpoint, spec)
    text = next((key for key in _DECODER_KEYS if config.section(key).given), "text_config")
    names = family.tensor_names(checkpoint, spec)
    names = fold_multipliers(config.section(text), spec, names, family.multipliers, family.raw)
    head = names["decoder.head"]
    tied = (f"{head}.weight",) if spec.decoder.tie_embeddings else ()
    tree = weight_tree(spec) | host_tree(spec)
    return spec, map_tree(checkpoint, tree, names, lambda name: name.startswith((*unused, *tied)))


def read_image_spec(folder: Path, model: ModelSpec) -> ImageSpec:
    """The picture rules of the processor of the checkpoint in `folder`."""
    return _family(model.family, model.name).image(ProcessorFiles(folder), model)


def read_prompt_spec(folder: Path, model: ModelSpec) -> PromptSpec:
    """Its conversation rules: chat format, image tokens and stop tokens."""
    return read_prompt(folder, model).spec


def read_prompt(folder: Path, model: ModelSpec) -> ReadPrompt:
    """The same, and what its chat template writes for a picture."""
    files = ProcessorFiles(folder)
    read_tokenizer_file(files.tokenizer_json, model.decoder.vocab_size)  # each token has a row of the embedding table
    return _family(model.family, model.name).prompt(files, model)


def find_family(config: Mapping[str, Any], name: str) -> Family:
    """The family of the model `name` with that config.json; EdgeVLMError if it is not supported."""
    kind = config.get("model_type")
    marked = (family for family in FAMILIES if kind is None and family.mark in config)
    return next(marked, None) or _family(kind, name, config)


def adapter_base(checkpoint: Checkpoint) -> Base:
    """The model as an adapter sees it."""
    family = find_family(checkpoint.config, checkpoint.name)
    spec = family.read(checkpoint, JsonFile(checkpoint.folder / "config.json", checkpoint.config))
    names = family.tensor_names(checkpoint, spec)
    return Base(
        checkpoint.name,
        {name: checkpoint.shape(name) for name in checkpoint.names()},
        embed=f"{family.embed or names['decoder.embed']}.weight",
        head=f"{names['decoder.head']}.weight",
        tied=spec.decoder.tie_embeddings,
    )


def _family(kind: object, name: str, config: Mapping[str, Any] | None = None) -> Family:
    for family in FAMILIES:
        if kind in family.model_types:
            return family
    parts = "; ".join(_parts(config or {}))
    raise EdgeVLMError(
        f"{name} is of the model family {repr(kind)[:100]}, which edgevlm does not support: {parts}; "
        "docs/checkpoints.md lists the families that it supports."
    )


def _parts(config: Mapping[str, Any]) -> Iterator[str]:
    """Which of the two large parts of a model of an unknown family are known."""
    towers = sorted({tower for family in FAMILIES for tower in family.towers})
    decoders = sorted({*DECODERS, *(decoder for family in FAMILIES for decoder in family.decoders)})
    for part, keys, known in (("vision tower", _TOWER_KEYS, towers), ("decoder", _DECODER_KEYS, decoders)):
        section = next((config[key] for key in keys if isinstance(config.get(key), dict)), None)
        kind = None if section is None else section.get("model_type")
        if section is None:
            yield f"its config.json describes no {part}"
        elif kind is None:
            yield f"its config.json gives its {part} no model_type"
        elif kind in known:
            yield f"its {part} {kind!r} is known"
        else:
            # Without what says which part it is, which files write or leave out.
            short = sorted({re.sub("_(vision|vision_model|text)$", "", name) for name in known})
            yield f"its {part} {repr(kind)[:60]} is not known; known: {', '.join(short)}"


# Where configs describe their parts.
_TOWER_KEYS = ("vision_config", "vision_encoder_config", "vision_tower_config", "vit_config")
_DECODER_KEYS = ("text_config", "llm_config", "language_config", "text_decoder_config")
