"""GLM-4.1V (arXiv 2507.01006) and GLM-4.6V-Flash: a table of positions and 2-D RoPE in the tower, whose tokens go
through a gated MLP; GLM-4's decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import glm4_text, names
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Names, Plain, Swapped, prefix_of
from edgevlm.checkpoint.families.towers import read_grid
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import native_spec
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.checkpoint.processor.videos import with_timed_pairs
from edgevlm.inputs.grounding import Grounding
from edgevlm.inputs.native import NativeScaled
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Gated, Group, Linear, Normalize, Step
from edgevlm.models.spec import Mlp, Norm
from edgevlm.models.towers.qwen_vit import QwenVit

AROUND_VIDEO: dict[str, Any] = {
    "intro": "<|begin_of_video|>",
    "open": "<|begin_of_image|>",
    "outro": "<|end_of_video|>",
}
VIDEOS: dict[str, dict[str, Any]] = {  # 4.6V's class has its own numbers of frames, whatever the file says
    "glm4v": {"kind": "Glm4vVideoProcessor", "spread": "steps", "close": "<|end_of_image|>{whole}"},
    "glm46v": {
        "kind": "Glm46VVideoProcessor", "spread": "walk", "close": "<|end_of_image|>{start} seconds", "most": 640,
        "fps": 6.0, "longest": 2400.0, "slower": ((30.0, 2.0), (300.0, 1.0)),
    },
}  # fmt: skip
TEXT: dict[str, Any] = {
    "hidden": 4096, "inner": 13696, "layers": 40, "heads": 32, "kv_heads": 2, "vocab": 151552, "context": 32768,
}  # fmt: skip


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    vision = config.section("vision_config")
    width = vision.count("out_hidden_size", 4096)
    tower = read_tower(vision, hidden_size=1536, heads=12, inner=width, bias=False, pre_norm=True, resample="cubic")
    return ModelSpec(
        name=checkpoint.name,
        family=config.choice("model_type", None, {kind: kind for kind in TYPES}),
        vision=replace(tower, table=max(1, vision.side("image_size", 336) // tower.patch_size)),
        projector=merger(tower, width, vision.count("intermediate_size", 13696)),
        decoder=glm4_text.read(checkpoint, config, "glm4v_text", True, TEXT),
        image_token_id=config.count("image_token_id", 151343, least=0),
    )


def read_tower(config: JsonFile, *, hidden_size: int, heads: int, inner: int, bias: bool, **options: Any) -> QwenVit:
    """hidden_size, heads, bias: the family's defaults, the last of q, k and v. inner: of its MLPs."""
    config.choice("hidden_act", "silu", {"silu": "silu"})
    norm = Norm("rms", config.number("rms_norm_eps", 1e-5))
    tower = read_grid(
        config, hidden_size=hidden_size, heads=heads, depth=24, mlp=Mlp(inner), norm=norm, patch_bias=True,
        post_norm=True, **options,
    )  # fmt: skip
    attention = replace(tower.attention, bias=config.flag("attention_bias", bias), out_bias=False)
    return replace(tower, block=replace(tower.block, mixers=(attention,)))


def merger(tower: QwenVit, width: int, inner: int) -> tuple[Step, ...]:
    """A convolution that makes one token of its patches, a map, a norm, and a gated MLP."""
    maps = Linear("linear_1", width), Linear("linear_2", width, bias=False)
    steps = Normalize(Norm("layer", 1e-5)), Act("gelu"), Gated(Mlp(inner), width)
    return Group(tower.merge, tower.hidden_size), *maps, *steps


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    tower = prefix_of(checkpoint, "patch_embed.proj.weight")
    return {
        **tower_names(checkpoint, spec),
        "vision.pre_norm": f"{tower}post_conv_layernorm",
        "vision.position_embedding": Plain(f"{tower}embeddings.position_embedding.weight"),
    }


def tower_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    """What both kinds of tower have, and the decoder's."""
    tower, vision = prefix_of(checkpoint, "patch_embed.proj.weight"), spec.vision
    assert isinstance(vision, QwenVit)
    side = vision.merge
    return {
        **names.grid(tower, vision, gate="gate_proj", up="up_proj", down="down_proj"),
        **{f"vision.layers.{{i}}.{part}_norm": f"{tower}blocks.{{i}}.attn.{part}_norm" for part in "qk"},
        "vision.post_norm": f"{tower}post_layernorm",
        "projector.linear_1": Swapped(f"{tower}downsample", side**2, kernel=(side, side)),
        "projector.linear_2": f"{tower}merger.proj",
        "projector.norm": f"{tower}merger.post_projection_norm",
        **{f"projector.{part}": f"{tower}merger.{part}_proj" for part in ("gate", "up", "down")},
        **glm4_text.tensor_names(checkpoint, spec.decoder),
    }


def unused(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    return glm4_text.unused(checkpoint, spec.decoder)


def still(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    return native_spec(
        files, model, "Glm4vImageProcessor", "Glm46VImageProcessor", least=112 * 112, most=28 * 28 * 15000, counted=2,
        kind=NativeScaled,
    )  # fmt: skip


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    return with_timed_pairs(still(files, model), files, **AROUND_VIDEO, **VIDEOS[model.family])


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    return prompt_spec(
        files, model, grounding=Grounding("tagged", 1000, open="<|begin_of_box|>", close="<|end_of_box|>")
    )


TYPES, TITLE = ("glm4v", "glm46v"), "GLM-4.1V and GLM-4.6V-Flash"
TOWERS, DECODERS = (*TYPES, "glm4v_vision"), ("glm4v_text",)
FAMILY = Family(TYPES, TITLE, read, tensor_names, image, prompt, unused, towers=TOWERS, decoders=DECODERS)
