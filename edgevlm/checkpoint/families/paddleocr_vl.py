"""PaddleOCR-VL (arXiv 2510.14528): SigLIP's layers on any grid with 2-D RoPE, ERNIE 4.5's decoder with M-RoPE."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.decoders import is_tied, mrope_sections, read_decoder, text_of
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Names, Plain, prefix_of
from edgevlm.checkpoint.families.towers import ACTIVATIONS, merger, read_grid
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import native_spec
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.inputs.native import NativeGrown
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Normalize
from edgevlm.models.spec import Mlp, Norm
from edgevlm.models.towers.qwen_vit import QwenVit

TABLE = "embeddings.position_embedding.weight"
TEXT: dict[str, Any] = {
    "hidden": 1024, "inner": 3072, "layers": 18, "heads": 16, "kv_heads": 2, "head_dim": 128, "vocab": 103424,
    "context": 131072, "theta": 5e5, "eps": 1e-5,
}  # fmt: skip


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    text, embed = text_of(config), f"{prefix_of(checkpoint, 'embed_tokens.weight')}embed_tokens.weight"
    tied = is_tied(checkpoint, config, text, "lm_head.weight", embed, default=True)
    biased = text.renamed(attention_bias="use_bias", mlp_bias="use_bias")
    decoder = read_decoder(biased, tied=tied, kind="llama", sections=mrope_sections(text), **TEXT)
    tower = _tower(config.section("vision_config"))
    _, *steps = merger(tower, decoder.hidden_size)
    return ModelSpec(
        name=checkpoint.name,
        family="paddleocr_vl",
        vision=tower,
        projector=(Normalize(Norm("layer", 1e-5)), *steps),
        decoder=decoder,
        image_token_id=config.count("image_token_id", 100295, least=0),
    )


def _tower(config: JsonFile) -> QwenVit:
    act = config.choice("hidden_act", "gelu_pytorch_tanh", ACTIVATIONS)
    tower = read_grid(
        # A still picture is one frame, whatever older files say of videos.
        config.without("temporal_patch_size").renamed(num_heads="num_attention_heads", depth="num_hidden_layers"),
        hidden_size=1152,
        frames=1,
        depth=27,
        mlp=Mlp(config.count("intermediate_size", 4304), act, gated=False, bias=True),
        norm=Norm("layer", config.number("layer_norm_eps", 1e-6)),
        patch_bias=True,
        resample="centers",
        post_norm=True,
    )
    return replace(tower, table=max(1, config.side("image_size", 384) // tower.patch_size))


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    tower, connector, vision = prefix_of(checkpoint, TABLE), prefix_of(checkpoint, "pre_norm.weight"), spec.vision
    kernel = (vision.hidden_size, 3, vision.patch_size, vision.patch_size)
    return {
        **names.siglip(tower),
        "vision.patch_embedding": Plain(f"{tower}embeddings.patch_embedding", kernel),
        "projector.norm": f"{connector}pre_norm",
        "projector.linear_1": f"{connector}linear_1",
        "projector.linear_2": f"{connector}linear_2",
        **names.llama(prefix_of(checkpoint, "embed_tokens.weight")),
    }


def unused(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    tower = prefix_of(checkpoint, TABLE)
    return f"{tower}embeddings.packing_position_embedding.", f"{tower}head."


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    return native_spec(
        files, model, "PaddleOCRVLImageProcessor", least=384**2, most=1536**2, frames=1, kind=NativeGrown
    )


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    return prompt_spec(files, model)


TYPES, TOWERS, DECODERS = ("paddleocr_vl",), ("paddleocr_vl", "paddleocr_vl_vision"), ("paddleocr_vl_text",)
FAMILY = Family(
    TYPES, "PaddleOCR-VL", read, tensor_names, image, prompt, unused=unused, towers=TOWERS, decoders=DECODERS
)
