"""MiniCPM-V 4.6: SigLIP's tower on any grid, joined to half of it on the way, and Qwen3.5's decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names, qwen3_5_text
from edgevlm.checkpoint.families.decoders import is_tied
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.minicpmv4_6_files import MODES, image, prompt
from edgevlm.checkpoint.families.tensors import Names, Plain, prefix_of
from edgevlm.checkpoint.families.towers import read_vit
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Group, Linear, Normalize
from edgevlm.models.spec import Norm
from edgevlm.models.towers.halved_vit import HalvedVit
from edgevlm.models.towers.qwen_vit import QwenVit

EMBED, HEAD, MERGER = "embed_tokens.weight", "lm_head", "merger.mlp.0."


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    text, prefix = config.section("text_config"), prefix_of(checkpoint, EMBED)
    tied = is_tied(checkpoint, config, text, f"{HEAD}.weight", f"{prefix}{EMBED}")
    config.choice("merger_times", 1, {1: "1"})
    decoder, tower = qwen3_5_text.read(text, tied=tied), _tower(config)
    return ModelSpec(
        name=checkpoint.name,
        family="minicpmv4_6",
        vision=tower,
        projector=(
            Group(2, tower.hidden_size),
            Normalize(Norm("layer", 1e-6)),
            Linear("linear_1", 4 * tower.hidden_size),
            Act("gelu"),
            Linear("linear_2", decoder.hidden_size),
        ),
        decoder=replace(decoder, places="line"),
        image_token_id=config.count("image_token_id", least=0),
    )


def _tower(config: JsonFile) -> QwenVit:
    section = config.section("vision_config")
    section.choice("hidden_act", "gelu_pytorch_tanh", {"gelu_pytorch_tanh": "gelu_tanh"})
    for file, key in ((config, "merge_kernel_size"), (section, "window_kernel_size")):
        if file.value(key, [2, 2]) != [2, 2]:
            raise file.wrong(key, "[2, 2]")
    config.require(False, "drop_vision_last_layer")
    shape = read_vit(section, image_size=224, patch_size=16, hidden_size=768, heads=12)
    options: dict[str, Any] = {
        "patch_size": shape.patch_size, "merge": 2, "window": None, "hidden_size": shape.hidden_size,
        "num_layers": shape.num_layers, "full": (), "block": shape.block, "patch_bias": True,
        "table": shape.patches_per_side, "resample": "nearest", "post_norm": True,
    }  # fmt: skip
    if config.choice("downsample_mode", "16x", MODES) == "4":
        return QwenVit(**options)
    return HalvedVit(**options, halved=config.count("insert_layer_id", 6, least=0))


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    tower, merger = prefix_of(checkpoint, names.PATCHES), prefix_of(checkpoint, f"{MERGER}linear_1.weight")
    kernel = (spec.vision.hidden_size, 3, *(spec.vision.patch_size,) * 2)
    joined = {
        "norm1": "layer_norm1", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
        "o": "self_attn.out_proj", "norm2": "pre_norm", "fc1": "linear_1", "fc2": "linear_2",
    }  # fmt: skip
    return {
        **names.siglip(tower),
        "vision.patch_embedding": Plain(f"{tower}embeddings.patch_embedding", kernel),
        **{f"vision.join.{ours}": f"{tower}vit_merger.{theirs}" for ours, theirs in joined.items()},
        **names.two_maps(f"{merger}{MERGER}", "pre_norm"),
        **qwen3_5_text.tensor_names(prefix_of(checkpoint, EMBED), HEAD, spec.decoder),
    }


def unused(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    further = ("mtp.",)  # layers that guess further tokens
    whole = isinstance(spec.vision, HalvedVit)
    return further if whole else (*further, f"{prefix_of(checkpoint, names.PATCHES)}vit_merger.")  # the 4x mode


TYPES, TITLE, TOWERS, DECODERS = ("minicpmv4_6",), "MiniCPM-V 4.6", ("minicpmv4_6_vision",), ("qwen3_5_text",)
FAMILY = Family(TYPES, TITLE, read, tensor_names, image, prompt, unused, towers=TOWERS, decoders=DECODERS)
