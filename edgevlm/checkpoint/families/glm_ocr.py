"""GLM-OCR: GLM-4.1V's tower with norms of heads in place of a table of positions, a small decoder of the same kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import glm4_text, glm4v
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import Mlp
from edgevlm.models.towers.qwen_vit import QwenVit

TEXT: dict[str, Any] = {
    "hidden": 1024, "inner": 4096, "layers": 16, "heads": 16, "kv_heads": 8, "vocab": 59392, "context": 131072,
}  # fmt: skip


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    vision = config.section("vision_config")
    width, tower = vision.count("out_hidden_size", 1536), _tower(vision)
    return ModelSpec(
        name=checkpoint.name,
        family="glm_ocr",
        vision=tower,
        projector=glm4v.merger(tower, width, 3 * width),
        decoder=glm4_text.read(checkpoint, config, "glm_ocr_text", False, TEXT),
        image_token_id=config.count("image_token_id", 59280, least=0),
    )


def _tower(config: JsonFile) -> QwenVit:
    inner = config.count("intermediate_size", 4096)
    tower = glm4v.read_tower(config, hidden_size=1024, heads=16, inner=inner, bias=True)
    bias, block = tower.attention.bias, tower.block
    attention = replace(tower.attention, out_bias=bias, qk_norm=block.norm)
    return replace(tower, block=replace(block, mixers=(attention,), mlp=Mlp(inner, bias=bias)))


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    return prompt_spec(files, model)


TYPES, TOWERS, DECODERS = ("glm_ocr",), ("glm_ocr", "glm_ocr_vision"), ("glm_ocr_text",)
FAMILY = Family(
    TYPES, "GLM-OCR", read, glm4v.tower_names, glm4v.still, prompt, glm4v.unused, towers=TOWERS, decoders=DECODERS
)
