"""FastVLM (arXiv 2412.13303) in transformers' layout: timm's FastViT of five stages, two maps, a Qwen2 decoder."""

from __future__ import annotations

import math
from collections.abc import Callable

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import llava, names
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.linked import head_of, read_text, two_maps
from edgevlm.checkpoint.families.tensors import BatchNormed, Names, Plain, Pointwise, Scaled, Source, Split, prefix_of
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import Attention, Block, Mlp, Norm
from edgevlm.models.towers.conv_vit import ConvVit

DEPTHS = {"fastvit_mci3": (2, 12, 24, 4, 2), "fastvit_mci4": (2, 12, 24, 4, 4)}
WIDTHS = {"fastvit_mci3": (96, 192, 384, 768, 1536), "fastvit_mci4": (128, 256, 512, 1024, 2048)}
STEM = "stem.0.reparam_conv.weight"
HEAD = 32  # channels of an attention head


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    config.choice("vision_feature_select_strategy", "full", {"full": "full"})
    config.choice("vision_feature_layer", -1, {-1: "last"})
    decoder = read_text(checkpoint, config, "qwen2")
    return ModelSpec(
        name=checkpoint.name,
        family="fast_vlm",
        vision=_tower(config),
        projector=two_maps(config, decoder, config.flag("multimodal_projector_bias", True)),
        decoder=decoder,
        image_token_id=config.count("image_token_index", 151646, least=0),
    )


def _tower(config: JsonFile) -> ConvVit:
    """timm's options but for depths and widths are those of the architecture; kernels have to be folded already."""
    vision = config.section("vision_config")
    kind = vision.choice("architecture", "fastvit_mci3", {name: name for name in DEPTHS})
    options = vision.section("model_args")
    if other := sorted(set(options.data) - {"inference_mode", "layers", "embed_dims"}):
        raise options.wrong(other[0], "nothing but inference_mode, layers and embed_dims")
    options.require(True, "inference_mode")
    depths, widths = options.counts("layers", DEPTHS[kind]), options.counts("embed_dims", WIDTHS[kind])
    patch = 2 ** (len(widths) + 1)
    tokens = config.count("image_seq_length", 576, most=limits.PATCHES)
    if (side := math.isqrt(tokens)) ** 2 != tokens:
        raise config.wrong("image_seq_length", "the square of a whole number")
    attention = Attention(max(1, widths[-1] // HEAD), max(1, widths[-1] // HEAD), HEAD, out_bias=True)
    return ConvVit(
        image_size=side * patch,
        patch_size=patch,
        hidden_size=2 * widths[-1],
        num_layers=sum(depths),
        block=Block((attention,), Mlp(4 * widths[-1], "gelu", gated=False, bias=True), Norm("layer", 1e-5)),
        widths=widths,
        depths=depths,
    )


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    tower, vision = prefix_of(checkpoint, STEM), spec.vision
    assert isinstance(vision, ConvVit)
    places = [(stage, block) for stage, depth in enumerate(vision.depths) for block in range(depth)]

    def block(layer: int) -> str:
        return "{}stages.{}.blocks.{}.".format(tower, *places[layer])

    def attends(layer: int) -> bool:
        return places[layer][0] >= len(vision.depths) - vision.attending

    def out(layer: int) -> Source:
        scale = "layer_scale_2" if attends(layer) else "layer_scale"
        return Scaled(Pointwise(f"{block(layer)}mlp.fc2"), f"{block(layer)}{scale}.gamma", 2)

    def part(start: int) -> Callable[[int], Source]:
        def rows(layer: int) -> Source:
            width = vision.widths[places[layer][0]]
            return Split(f"{block(layer)}token_mixer.qkv", start * width, 3 * width)

        return rows

    stages = range(1, len(vision.widths))
    mixer = "token_mixer.proj"
    return {
        **{f"vision.stem_{n}": f"{tower}stem.{n - 1}.reparam_conv" for n in (1, 2)},
        "vision.stem_3": Pointwise(f"{tower}stem.2.reparam_conv"),
        **{f"vision.coarser_{n}": f"{tower}stages.{n}.downsample.proj.0.reparam_conv" for n in stages},
        **{f"vision.mixed_{n}": Pointwise(f"{tower}stages.{n}.downsample.proj.1.reparam_conv") for n in stages},
        **{f"vision.positions_{n}": f"{tower}stages.{n}.pos_emb.reparam_conv" for n in stages},
        "vision.layers.{i}.norm1": lambda i: Plain(f"{block(i)}norm"),
        **{f"vision.layers.{{i}}.{name}": part(n) for n, name in enumerate("qkv")},
        "vision.layers.{i}.o": lambda i: Scaled(Plain(f"{block(i)}{mixer}"), f"{block(i)}layer_scale_1.gamma", 2),
        "vision.layers.{i}.mix": lambda i: Plain(f"{block(i)}token_mixer.reparam_conv"),
        "vision.layers.{i}.conv": lambda i: BatchNormed(f"{block(i)}mlp.conv.conv", f"{block(i)}mlp.conv.bn"),
        "vision.layers.{i}.fc1": lambda i: Pointwise(f"{block(i)}mlp.fc1"),
        "vision.layers.{i}.fc2": out,
        "vision.last": f"{tower}final_conv.reparam_conv",
        "vision.squeeze": Pointwise(f"{tower}final_conv.se.fc1"),
        "vision.excite": Pointwise(f"{tower}final_conv.se.fc2"),
        **names.two_maps(prefix_of(checkpoint, "linear_1.weight")),
        **names.llama(prefix_of(checkpoint, "embed_tokens.weight"), head_of(checkpoint)),
    }


FAMILY = Family(("fast_vlm",), "FastVLM", read, tensor_names, llava.image, llava.prompt, towers=("timm_wrapper",))
