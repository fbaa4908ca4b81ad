"""Qwen2.5-VL (arXiv 2502.13923): any grid, window attention, 2-D RoPE in the tower, M-RoPE in the decoder."""

from __future__ import annotations

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.decoders import is_tied, read_decoder
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Names, SumFrames, prefix_of
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import image_spec, processor_type, token_pixels
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.inputs.grounding import Grounding
from edgevlm.inputs.rules import Native
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Group, Linear, Normalize, Take
from edgevlm.models.spec import Attention, Block, Mlp, Norm
from edgevlm.models.towers.qwen_vit import QwenVit

HEAD = "lm_head"


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    nested = config.section("text_config")
    text = nested if nested.given else config.without("model_type")  # older files have the decoder's fields at the top
    prefix = prefix_of(checkpoint, "embed_tokens.weight")
    tied = is_tied(checkpoint, config, text, f"{HEAD}.weight", f"{prefix}embed_tokens.weight")
    decoder = read_decoder(text, tied=tied, sections=_sections(text), kind="qwen2")
    tower = _tower(config.section("vision_config"))
    width = tower.hidden_size
    return ModelSpec(
        name=checkpoint.name,
        family="qwen2_5_vl",
        vision=tower,
        projector=(
            Normalize(tower.block.norm),
            Group(tower.merge, width),
            Linear("linear_1", width * tower.merge**2),
            Act("gelu"),
            Linear("linear_2", decoder.hidden_size),
            Take("order"),
        ),
        decoder=decoder,
        image_token_id=config.count("image_token_id", 151655, least=0),
    )


def _sections(text: JsonFile) -> tuple[int, ...]:
    """Frequencies of M-RoPE's axes: time, row, column."""
    found = None
    for key in ("rope_scaling", "rope_parameters"):
        found = text.section(key).value("mrope_section")
        if isinstance(found, list) and len(found) == 3 and all(type(n) is int and n > 0 for n in found):
            return tuple(found)
    raise text.wrong("rope_parameters", "an object with mrope_section, three whole numbers")


def _tower(config: JsonFile) -> QwenVit:
    config.choice("hidden_act", "silu", {"silu": "silu"})
    config.choice("temporal_patch_size", 2, {2: "2"})
    hidden, heads = config.count("hidden_size", 3584), config.count("num_heads", 16)
    patch, merge = config.count("patch_size", 14), config.count("spatial_merge_size", 2)
    full = config.value("fullatt_block_indexes")
    if full is not None and not (isinstance(full, list) and all(type(i) is int for i in full)):
        raise config.wrong("fullatt_block_indexes", "a list of layers")
    window = config.count("window_size", 112)
    if window < merge * patch:
        raise config.wrong("window_size", f"at least the {merge * patch} pixels of a token")
    attention = Attention(heads, heads, max(1, hidden // heads), bias=True, out_bias=True, rope="patches")
    return QwenVit(
        patch_size=patch,
        merge=merge,
        window=window // merge // patch * merge,
        hidden_size=hidden,
        num_layers=config.count("depth", 32, most=limits.LAYERS),
        full=(7, 15, 23, 31) if full is None else tuple(full),
        block=Block((attention,), Mlp(config.count("intermediate_size", 3420), bias=True), Norm("rms", 1e-6)),
    )


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    tower, vision = prefix_of(checkpoint, "patch_embed.proj.weight"), spec.vision
    assert isinstance(vision, QwenVit)
    block, width = f"{tower}blocks.", vision.hidden_size
    return {
        "vision.patch_embedding": SumFrames(f"{tower}patch_embed.proj", vision.patch_size),
        "vision.layers.{i}.norm1": f"{block}{{i}}.norm1",
        **names.fused_qkv(block, ".attn.qkv", width),
        "vision.layers.{i}.o": f"{block}{{i}}.attn.proj",
        "vision.layers.{i}.norm2": f"{block}{{i}}.norm2",
        "vision.layers.{i}.gate": f"{block}{{i}}.mlp.gate_proj",
        "vision.layers.{i}.up": f"{block}{{i}}.mlp.up_proj",
        "vision.layers.{i}.down": f"{block}{{i}}.mlp.down_proj",
        "projector.norm": f"{tower}merger.ln_q",
        "projector.linear_1": f"{tower}merger.mlp.0",
        "projector.linear_2": f"{tower}merger.mlp.2",
        **names.llama(prefix_of(checkpoint, "embed_tokens.weight"), HEAD),
    }


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    file = files.image
    processor_type(file, "Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor")
    if not file.flag("do_resize", True):
        raise file.wrong("do_resize", "true")
    unit = file.count("patch_size", 14) * file.count("merge_size", 2)
    if unit != token_pixels(model):
        raise file.wrong("patch_size", f"with merge_size, the {token_pixels(model)} pixels of a token in config.json")
    least = _pixels(file, "min_pixels", "shortest_edge", 56 * 56)
    most = _pixels(file, "max_pixels", "longest_edge", 28 * 28 * 1280)
    return image_spec(files, model, Native(unit, least, most), usual=3)


def _pixels(file: JsonFile, key: str, edge: str, usual: int) -> int:
    """An area: transformers 4 has it under `key`, transformers 5 in size, where it is called an edge."""
    size = file.value("size")
    found = file.value(key)
    if found is None:
        found = size.get(edge, usual) if isinstance(size, dict) else usual
    if type(found) is not int or found < 1:
        raise file.wrong(key, "a number of pixels")
    return found


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    return prompt_spec(files, model, grounding=Grounding("json"))  # in pixels of the resized picture


TYPES, TOWERS, DECODERS = ("qwen2_5_vl",), ("qwen2_5_vl", "qwen2_5_vl_vision"), ("qwen2_5_vl_text",)
FAMILY = Family(TYPES, "Qwen2.5-VL", read, tensor_names, image, prompt, towers=TOWERS, decoders=DECODERS)
