"""LFM3-VL: a tower of convolutions over the grid among layers of grouped attention, two maps, LFM3's decoder."""

from __future__ import annotations

from collections.abc import Callable

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import lfm3, qwen3_vl
from edgevlm.checkpoint.families.decoders import is_tied
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Names, Plain, Source, Split, either, prefix_of
from edgevlm.checkpoint.families.towers import ACTIVATIONS
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import native_spec
from edgevlm.checkpoint.processor.prompts import prompt_spec
from edgevlm.checkpoint.processor.videos import with_pairs
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Group, Linear, Normalize
from edgevlm.models.spec import Attention, Block, Mlp, Norm
from edgevlm.models.towers.qwen_vit import QwenVit

HEAD, EMBED, CONV, FULL = "lm_head", "embed_tokens.weight", lfm3.CONV, lfm3.FULL
PATCHES = ("patchifier", "patch_embed")  # in published files, and in memory


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    text = config.section("text_config")
    tied = is_tied(checkpoint, config, text, f"{HEAD}.weight", prefix_of(checkpoint, EMBED) + EMBED, default=True)
    tower, decoder = _tower(config.section("vision_config")), lfm3.read(text, tied=tied)
    bias = config.flag("projector_bias", True)
    return ModelSpec(
        name=checkpoint.name,
        family="lfm3_vl",
        vision=tower,
        projector=(
            Normalize(Norm("layer", 1e-6)),
            Group(tower.merge, tower.hidden_size),
            Linear("linear_1", config.count("projector_hidden_size", 4096, most=limits.MLP_WIDTH), bias=bias),
            Act(config.choice("projector_hidden_act", "gelu", ACTIVATIONS)),
            Linear("linear_2", decoder.hidden_size, bias=bias),
        ),
        decoder=decoder,
        image_token_id=config.count("image_token_id", 125_030, least=0),
    )


def _tower(config: JsonFile) -> QwenVit:
    hidden, heads = config.count("hidden_size", 1024), config.count("num_attention_heads", 16)
    size = config.count("head_dim", max(1, hidden // heads))
    config.choice("in_channels", 3, {3: "3"})
    config.choice("temporal_patch_size", 2, {2: "2"})
    rope = config.section("rope_parameters")
    rope.choice("rope_type", "axial", {"axial": "axial", "default": "axial"})
    norm = Norm("rms", config.number("norm_eps", 1e-5))
    count = config.count("num_hidden_layers", 14, most=limits.LAYERS)
    kinds = config.value("layer_types", [CONV if i < 2 or i % 2 else FULL for i in range(count)])
    if not isinstance(kinds, list) or len(kinds) != count or any(kind not in (CONV, FULL) for kind in kinds):
        raise config.wrong("layer_types", f"{count} of '{CONV}' and '{FULL}'")
    attention = Attention(heads, config.count("num_key_value_heads", 8), size, rope="patches", qk_norm=norm)
    return QwenVit(
        patch_size=config.side("patch_size", 16),
        merge=config.count("spatial_merge_size", 2),
        window=None,
        hidden_size=hidden,
        num_layers=count,
        full=(),
        block=Block((attention,), Mlp(config.count("intermediate_size", 2560, most=limits.MLP_WIDTH)), norm),
        theta=rope.number("rope_theta", 1e6),
        pre_norm=True,
        convolving=tuple(i for i, kind in enumerate(kinds) if kind == CONV),
        frames=2,
        kernel=config.count("conv_kernel_size", 3, most=limits.GRID_KERNEL),
    )


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    vision, patches = spec.vision, either(checkpoint, *PATCHES)
    assert isinstance(vision, QwenVit)
    tower, projector = prefix_of(checkpoint, f"{patches}.weight"), prefix_of(checkpoint, "linear_1.weight")
    layers, width, norm = f"{tower}layers.", vision.hidden_size, either(checkpoint, "q_layernorm", "q_norm")[1:]

    def rows(start: int) -> Callable[[int], Source]:
        return lambda i: Split(f"{layers}{i}.conv.in_proj", start, 3 * width)

    return {
        "vision.patch_embedding": f"{tower}{patches}",
        "vision.pre_norm": f"{tower}embedding_norm",
        **{f"vision.layers.{{i}}.{ours}": f"{layers}{{i}}.{theirs}" for ours, theirs in _LAYER.items()},
        **{f"vision.layers.{{i}}.{part}_norm": f"{layers}{{i}}.self_attn.{part}{norm}" for part in "qk"},
        **{f"vision.layers.{{i}}.{part}": rows(number * width) for number, part in enumerate("bcx")},
        "vision.layers.{i}.conv": lambda i: Plain(
            f"{layers}{i}.conv.spatial_conv", (width, 1, vision.kernel, vision.kernel)
        ),
        "projector.norm": f"{projector}layer_norm",
        **{f"projector.{name}": f"{projector}{name}" for name in ("linear_1", "linear_2")},
        **lfm3.tensor_names(checkpoint, prefix_of(checkpoint, EMBED), HEAD, spec.decoder),
    }


_LAYER = {
    **{part: f"self_attn.{part}_proj" for part in "qkv"},
    "o": "self_attn.out_proj",
    "out": "conv.out_proj",
    "norm1": "operator_norm",
    "norm2": "ffn_norm",
    **{"gate": "feed_forward.w1", "up": "feed_forward.w3", "down": "feed_forward.w2"},
}


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    """Published files name classes of their authors' code, where transformers takes Qwen2-VL's and Qwen3-VL's."""
    return with_pairs(native_spec(files, model), files, None, **qwen3_vl.VIDEO)


TYPES, TOWERS, DECODERS = ("lfm3_vl",), ("lfm3_vl_vision",), ("lfm3",)
FAMILY = Family(TYPES, "LFM3-VL", read, tensor_names, image, prompt_spec, towers=TOWERS, decoders=DECODERS)
