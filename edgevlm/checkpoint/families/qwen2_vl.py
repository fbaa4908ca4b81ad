"""Qwen2-VL (arXiv 2409.12191): any grid, 2-D RoPE in the tower, M-RoPE in the decoder."""

from __future__ import annotations

from typing import Any

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.decoders import is_tied, mrope_sections, read_decoder, text_of
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Names, prefix_of
from edgevlm.checkpoint.families.towers import ACTIVATIONS, merger, read_grid
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import native_spec
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.checkpoint.processor.videos import with_pairs
from edgevlm.inputs.grounding import Grounding
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import Mlp, Norm
from edgevlm.models.towers.qwen_vit import QwenVit

BOXES = Grounding(
    "tagged", 1000, open="<|box_start|>", close="<|box_end|>", label_open="<|object_ref_start|>",
    label_close="<|object_ref_end|>",
)  # fmt: skip
AROUND_VIDEO: dict[str, Any] = {"intro": "<|vision_start|>", "outro": "<|vision_end|>", "token": "<|video_pad|>"}
TEXT: dict[str, Any] = {
    "hidden": 8192, "inner": 29568, "layers": 80, "heads": 64, "kv_heads": 8, "vocab": 152064, "theta": 1e6,
    "eps": 1e-5,
}  # fmt: skip


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    text, embed = text_of(config), f"{prefix_of(checkpoint, 'embed_tokens.weight')}embed_tokens.weight"
    tied = is_tied(checkpoint, config, text, "lm_head.weight", embed, text.flag("tie_word_embeddings", False))
    decoder = read_decoder(text, tied=tied, kind="qwen2", sections=mrope_sections(text), **TEXT)
    vision = config.section("vision_config")
    size = vision.count("embed_dim", 1280) * vision.count("mlp_ratio", 4)
    mlp = Mlp(size, vision.choice("hidden_act", "quick_gelu", ACTIVATIONS), gated=False, bias=True)
    tower = read_grid(vision.renamed(hidden_size="embed_dim"), hidden_size=1280, mlp=mlp, norm=Norm("layer", 1e-6))
    return ModelSpec(
        name=checkpoint.name,
        family="qwen2_vl",
        vision=tower,
        projector=merger(tower, decoder.hidden_size),
        decoder=decoder,
        image_token_id=config.count("image_token_id", 151655, least=0),
    )


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    return merged_names(checkpoint, spec, fc1="fc1", fc2="fc2")


def merged_names(checkpoint: Checkpoint, spec: ModelSpec, **mlp: str) -> Names:
    """mlp: the tower's maps in a layer's MLP, and their stored names."""
    tower = prefix_of(checkpoint, "patch_embed.proj.weight")
    assert isinstance(spec.vision, QwenVit)
    return {
        **names.grid(tower, spec.vision, **mlp),
        "projector.norm": f"{tower}merger.ln_q",
        "projector.linear_1": f"{tower}merger.mlp.0",
        "projector.linear_2": f"{tower}merger.mlp.2",
        **names.llama(prefix_of(checkpoint, "embed_tokens.weight")),
    }


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    return with_run(files, still(files, model))


def still(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    return native_spec(files, model, "Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor")


def with_run(files: ProcessorFiles, image: ImageSpec, pace: float | None = None) -> ImageSpec:
    """A video as one run of tokens. pace: positions of time in a second."""
    return with_pairs(
        image, files, "Qwen2VLVideoProcessor", unit=28, tokens=128000, spread="starts", apart=False, pace=pace,
        open="", **AROUND_VIDEO,
    )  # fmt: skip


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    return prompt_spec(files, model, grounding=BOXES)


TYPES, TOWERS, DECODERS = ("qwen2_vl",), ("qwen2_vl", "qwen2_vl_vision"), ("qwen2_vl_text",)
FAMILY = Family(TYPES, "Qwen2-VL", read, tensor_names, image, prompt, towers=TOWERS, decoders=DECODERS)
