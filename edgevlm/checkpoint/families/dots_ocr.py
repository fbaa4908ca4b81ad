"""dots.ocr (arXiv 2512.02498): a tower for any grid with gated layers between two norms, a Qwen2 decoder."""

from __future__ import annotations

from dataclasses import replace

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.decoders import is_tied, read_decoder
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Names, Plain, prefix_of
from edgevlm.checkpoint.families.towers import merger, read_grid
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import native_spec
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.inputs.grounding import Grounding
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Normalize
from edgevlm.models.spec import Mlp, Norm
from edgevlm.models.towers.qwen_vit import QwenVit

PATCHES, EMBED = "patch_embed.patchifier.proj.weight", "embed_tokens.weight"


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    embed = f"{prefix_of(checkpoint, EMBED)}{EMBED}"
    decoder = read_decoder(
        config.without("model_type"), tied=is_tied(checkpoint, config, config, "lm_head.weight", embed), kind="qwen2",
        kv_heads=32, hidden=4096, eps=1e-6,
    )  # fmt: skip
    vision = config.section("vision_config")
    width = vision.count("hidden_size", 1536)
    _, *steps = merger(tower := _tower(vision), width)
    return ModelSpec(
        name=checkpoint.name,
        family="dots_ocr",
        vision=tower,
        projector=(Normalize(Norm("layer", 1e-6)), *steps),
        decoder=decoder,
        image_token_id=config.count("image_token_id", 151665, least=0),
    )


def _tower(config: JsonFile) -> QwenVit:
    config.require(False, "is_causal")
    bias = config.flag("use_bias", False)
    tower = read_grid(
        config.renamed(hidden_size="embed_dim", num_heads="num_attention_heads", depth="num_hidden_layers"),
        hidden_size=1536, depth=42, heads=12, mlp=Mlp(config.count("intermediate_size", 4224), bias=bias),
        norm=Norm("rms", config.number("rms_norm_eps", 1e-5)), frames=1, patch_bias=True, pre_norm=True,
        post_norm=config.flag("post_norm", True),
    )  # fmt: skip
    attention = replace(tower.attention, bias=bias, out_bias=bias)
    return replace(tower, block=replace(tower.block, mixers=(attention,)))


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    tower, vision = prefix_of(checkpoint, PATCHES), spec.vision
    assert isinstance(vision, QwenVit)
    stem = f"{tower}patch_embed.patchifier"
    return {
        **names.grid(tower, vision, gate="fc1", up="fc3", down="fc2"),
        "vision.patch_embedding": Plain(f"{stem}.proj", (vision.hidden_size, 3, vision.patch_size, vision.patch_size)),
        "vision.pre_norm": f"{stem}.norm",
        "vision.post_norm": f"{tower}post_trunk_norm",
        "projector.norm": f"{tower}merger.ln_q",
        "projector.linear_1": f"{tower}merger.mlp.0",
        "projector.linear_2": f"{tower}merger.mlp.2",
        **names.llama(prefix_of(checkpoint, EMBED)),
    }


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    return native_spec(files, model, "Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor", frames=1)


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    return prompt_spec(files, model, grounding=Grounding("json"))  # in pixels of the resized picture


FAMILY = Family(("dots_ocr",), "dots.ocr", read, tensor_names, image, prompt, towers=("dots_vit",))
