"""HunyuanOCR (arXiv 2511.19575): a resampled table of positions, framed rows of features."""

from __future__ import annotations

from dataclasses import replace

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import hunyuan_text
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Names, Plain, Pointwise, Split, Swapped, prefix_of
from edgevlm.checkpoint.families.towers import ACTIVATIONS
from edgevlm.checkpoint.families.transforms import Projected
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import native_spec
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.inputs.packing import Packing
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Group, Linear, Normalize
from edgevlm.models.spec import Attention, Block, Mlp, Norm
from edgevlm.models.towers.qwen_vit import QwenVit

PUBLISHED = ("input_layernorm", "post_attention_layernorm", "dense_h_to_4h", "dense_4h_to_h", "proj.0", "proj.2")
RENAMED = ("layer_norm1", "layer_norm2", "fc1", "fc2", "proj_conv", "proj_out")  # in transformers' memory


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    tower, decoder = _tower(config.section("vision_config")), hunyuan_text.read(checkpoint, config)
    norm, width = Norm("rms", tower.block.norm.eps), tower.hidden_size
    return ModelSpec(
        name=checkpoint.name,
        family="hunyuan_vl",
        vision=tower,
        projector=(
            Normalize(norm),
            Group(tower.merge, width),
            Linear("linear_1", 2 * width),
            Act(tower.block.mlp.act),
            Linear("linear_2", 4 * width),
            Linear("linear_3", decoder.hidden_size),
            Normalize(norm, "norm_after"),
        ),
        decoder=decoder,
        image_token_id=config.count("image_token_id", 120120, least=0),
        newline=True,
        framed=True,
    )


def _tower(config: JsonFile) -> QwenVit:
    hidden, heads = config.count("hidden_size", 1152), config.count("num_attention_heads", 16)
    size, patch = max(1, hidden // heads), config.side("patch_size", 16)
    config.choice("head_dim", size, {size: f"{size}"})
    config.choice("num_channels", 3, {3: "3"})
    config.choice("temporal_patch_size", 1, {1: "1"})
    config.choice("interpolate_mode", "bilinear", {"bilinear": "bilinear"})
    act = config.choice("hidden_act", "gelu", ACTIVATIONS | {"silu": "silu"})
    mlp = Mlp(config.count("intermediate_size", 4304), act, gated=False, bias=True)
    attention = Attention(heads, heads, size, bias=True, out_bias=True)
    return QwenVit(
        patch_size=patch,
        merge=config.count("spatial_merge_size", 2, most=limits.SHUFFLE),
        window=None,
        hidden_size=hidden,
        num_layers=config.count("num_hidden_layers", 27, most=limits.LAYERS),
        full=(),
        block=Block((attention,), mlp, Norm("layer", config.number("rms_norm_eps", 1e-5))),
        patch_bias=True,
        table=max(1, config.side("max_image_size", 2048) // patch),
        resample="centers",
    )


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    tower, merger = prefix_of(checkpoint, "embeddings.patch_embedding.weight"), prefix_of(checkpoint, "image_newline")
    vision = spec.vision
    assert isinstance(vision, QwenVit)
    kernel, rows = (vision.hidden_size, 3, vision.patch_size, vision.patch_size), vision.table**2
    layer, eps, width = f"{tower}layers.{{i}}.", vision.block.norm.eps, vision.hidden_size
    norm1, norm2, fc1, fc2, merged, wider = PUBLISHED if merger.endswith("perceive.") else RENAMED
    stored = {"norm1": norm1, "norm2": norm2, "fc1": f"mlp.{fc1}", "fc2": f"mlp.{fc2}"}
    stored |= {part: f"self_attn.{part}_proj" for part in "qkvo"}
    after = f"{merger}after_rms"
    return {
        "vision.patch_embedding": Plain(f"{tower}embeddings.patch_embedding", kernel),
        "vision.position_embedding": Split(f"{tower}embeddings.position_embedding.weight", 1, rows + 1),
        **{f"vision.layers.{{i}}.{ours}": f"{layer}{theirs}" for ours, theirs in stored.items()},
        "projector.norm": f"{merger}before_rms",
        "projector.linear_1": Swapped(f"{merger}{merged}", vision.merge**2, kernel=(vision.merge, vision.merge)),
        "projector.linear_2": Pointwise(f"{merger}{wider}"),
        "projector.linear_3": f"{merger}mlp",
        "projector.norm_after": after,
        "newline": Projected(f"{merger}image_newline", after, eps, f"{merger}mlp", 4 * width),
        **{name: Projected(f"{merger}image_{name}", after, eps) for name in ("begin", "end")},
        **hunyuan_text.tensor_names(checkpoint),
    }


def unused(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    return (f"{prefix_of(checkpoint, 'image_newline')}image_sep",)


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    spec = native_spec(files, model, "HunYuanVLImageProcessor", least=512**2, most=2048**2, frames=1)
    return replace(spec, resample="bicubic", packing=Packing(framed=True))  # whatever filter the file names


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    files.processor.require(True, "cat_extra_token")
    return prompt_spec(files, model)


TYPES, TOWERS, DECODERS = ("hunyuan_vl",), ("hunyuan_vl", "hunyuan_vl_vision"), ("hunyuan_vl_text",)
FAMILY = Family(TYPES, "HunyuanOCR", read, tensor_names, image, prompt, unused, towers=TOWERS, decoders=DECODERS)
