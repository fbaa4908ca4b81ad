"""Small models of several families with random weights, pictures, and the eager reference on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgevlm.inputs.layout import Layout, Span, decoder_inputs
from edgevlm.inputs.preprocess import normalize
from edgevlm.inputs.rules import Native
from edgevlm.inputs.spec import IMAGE_SPEC_VERSION, ImageSpec
from edgevlm.models.decoder import decoder
from edgevlm.models.eager import EagerOps
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import (
    Act,
    Average,
    Gated,
    Group,
    Linear,
    Normalize,
    Pool,
    Positions,
    Resample,
    Shuffle,
    Take,
)
from edgevlm.models.record import weight_tree
from edgevlm.models.spec import Attention, Block, Decoder, Mlp, Norm, Rope
from edgevlm.models.states import States
from edgevlm.models.towers.conv_vit import ConvVit
from edgevlm.models.towers.halved_vit import HalvedVit
from edgevlm.models.towers.mobilenet import Attending, Bottleneck, MobileNet
from edgevlm.models.towers.placed_vit import PlacedVit
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.models.towers.sheet_vit import SheetVit
from edgevlm.models.towers.vit import Vit
from edgevlm.models.window_queries import WindowQueries
from edgevlm.runtimes.eager import encode_view
from edgevlm.types import F32, U8

WIDTH = 48  # of the decoder


class Drawn:
    """Random weights of a model, each a number that fp16 holds."""

    def __init__(self, spec: ModelSpec) -> None:
        rng = np.random.default_rng(0)
        self._values = {}
        for name, info in weight_tree(spec).items():
            scale = 0.3 if len(info.shape) == 1 else float(np.prod(info.shape[1:])) ** -0.5
            near_one = ("norm" in name and name.endswith(".weight")) or name.endswith(".scale")
            values = rng.normal(0, scale, info.shape) + near_one
            if name.endswith(("_min", "_max")):  # some values reach these bounds
                values = (1 + abs(values)) * (-1 if name.endswith("_min") else 1)
            self._values[name] = values.astype(np.float16).astype(np.float32)

    def read(self, name: str) -> F32:
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values


class Known(Drawn):
    """The same as a quantizer takes them."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._tree = weight_tree(spec)

    def names(self) -> list[str]:
        return list(self._tree)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tree[name].shape

    def is_linear(self, name: str) -> bool:
        return self._tree[name].is_linear


def text(attention: Attention, rope: Rope, **options: Any) -> Decoder:
    block = Block((replace(attention, rope="main"),), Mlp(80), Norm("rms", 1e-6))
    return Decoder(90, WIDTH, 128, (block,), (0, 0, 0), ropes={"main": rope}, **options)


PLAIN = text(Attention(4, 2, 16), Rope(1e4, 16), tie_embeddings=True)
HALVES = replace(
    text(
        Attention(4, 2, 16, qk_norm=Norm("rms", 1e-6), norm_after=True, second_rope="second"),
        Rope(1e4, 16, sections=(6, 2, 0, 0)),
        places="number",
    ),
    ropes={"main": Rope(1e4, 16, sections=(6, 2, 0, 0)), "second": Rope(1e4, 16, sections=(0, 2, 2, 4))},
)
MROPE = text(Attention(4, 2, 16, bias=True, qk_norm=Norm("rms", 1e-6)), Rope(1e5, 16, sections=(2, 3, 3)))


def clip(decoder: Decoder = PLAIN) -> ModelSpec:
    """CLIP's tower as LLaVA takes it."""
    attention = Attention(4, 4, 16, bias=True, out_bias=True)
    block = Block((attention,), Mlp(96, "quick_gelu", gated=False, bias=True), Norm("layer", 1e-5))
    tower = Vit(24, 8, 64, 2, block, patch_bias=False, class_token=True, pre_norm=True, post_norm=False)
    return ModelSpec(
        "m", "llava", tower, (Linear("linear_1", WIDTH), Act("gelu"), Linear("linear_2", WIDTH)), decoder, 1
    )


def convolved() -> ModelSpec:
    """A tower of three stages of convolutions, the last of which attends."""
    block = Block((Attention(4, 4, 16, out_bias=True),), Mlp(256, "gelu", gated=False, bias=True), Norm("layer", 1e-5))
    tower = ConvVit(32, 16, 128, 4, block, widths=(32, 32, 64), depths=(1, 2, 1), attending=1, squeeze=4)
    return replace(clip(), family="convolved", vision=tower)


def bottlenecks() -> ModelSpec:
    """Kernels in all places, attention with fewer keys and without, two grids that are fused on a coarser one."""
    few, many = Attention(2, 1, 8), Attention(4, 1, 16)
    layers = (
        Bottleneck(8, 24, fused=3, stride=2), Bottleneck(8, 16, fused=3), Bottleneck(16, 40, 3, 5, stride=2),
        Bottleneck(16, 32, 5), Attending(few, stride=2), Bottleneck(16, 16), Bottleneck(32, 64, 5, stride=2),
        Attending(many), Bottleneck(32, 48),
    )  # fmt: skip
    block = Block((many,), Mlp(72, "gelu_tanh", gated=False), Norm("rms", 1e-6))
    tower = MobileNet(64, 16, 56, len(layers), block, stem=12, layers=layers, fine=6)
    bare = Normalize(Norm("rms", 1e-6, weight=False))
    return replace(clip(), family="bottlenecks", vision=tower, projector=(Linear("linear", WIDTH, bias=False), bare))


def intern() -> ModelSpec:
    """A tower with norms of queries and keys, and a projector that shuffles and normalizes."""
    attention = Attention(2, 2, 32, bias=True, out_bias=True, qk_norm=Norm("rms", 1e-6))
    tower = Vit(32, 8, 64, 2, Block((attention,), Mlp(96, "gelu", gated=False, bias=True), Norm("layer", 1e-6)))
    steps = (
        Shuffle(2, 64),
        Normalize(Norm("layer", 1e-5)),
        Linear("linear_1", WIDTH),
        Act("relu"),
        Linear("linear_2", WIDTH),
    )
    return ModelSpec("m", "internvl", tower, steps, PLAIN, 1)


def levels() -> ModelSpec:
    """A tower of one size that gives two further levels of features, and a projector that adds positions."""
    spec, norm = intern(), Norm("layer", 1e-5)
    steps = (Shuffle(2, 64), Linear("linear", WIDTH, bias=False), Positions(4, WIDTH), Normalize(norm, "norm_out"))
    deepstack = (Shuffle(2, 64), Normalize(norm), Linear("linear", WIDTH))
    tower = replace(spec.vision, deepstack=(0, 1))
    return replace(spec, vision=tower, projector=steps, deepstack=deepstack, decoder=replace(PLAIN, deepstack=(0, 2)))


def windowed() -> ModelSpec:
    """Queries inside windows of two of the tower's states, by means and by a corner, on three levels."""
    spec, attention = intern(), Attention(2, 2, 32, bias=True, out_bias=True)
    mlp = Mlp(48, "gelu", gated=False, bias=True)
    block = Block((attention,), mlp, Norm("layer", 1e-12), places="post")
    step = WindowQueries(2, 1, (0, 1, 1), (-1, 3, 1), 64, WIDTH, block, Norm("layer", 1e-6))
    tower = replace(spec.vision, taps=(1, 2), post_norm=False)
    return replace(spec, vision=tower, projector=(step,), decoder=replace(PLAIN, deepstack=(0, 1)))


def pooled() -> ModelSpec:
    """Neighbours on the grid become their mean (Gemma 3)."""
    steps = Pool(2, 64), Normalize(Norm("rms", 1e-6)), Linear("linear", WIDTH, bias=False)
    return replace(intern(), projector=steps)


LAYER = Norm("layer", 1e-6)


def qwen(decoder: Decoder = MROPE) -> ModelSpec:
    """Qwen2.5-VL's tower: windows of 4 x 4 patches, 2 x 2 patches to a token."""
    attention = Attention(4, 4, 16, bias=True, out_bias=True, rope="patches")
    tower = QwenVit(4, 2, 4, 64, 3, (1,), Block((attention,), Mlp(96, bias=True), Norm("rms", 1e-6)))
    steps = (
        Normalize(Norm("rms", 1e-6)), Group(2, 64), Linear("linear_1", 256), Act("gelu"), Linear("linear_2", WIDTH),
        Take("order"),
    )  # fmt: skip
    return ModelSpec("m", "qwen2_5_vl", tower, steps, decoder, 1)


def halved() -> ModelSpec:
    """MiniCPM-V 4.6's: 2 x 2 patches joined behind the second layer, then 2 x 2 of these; the nearest positions."""
    block = Block((Attention(4, 4, 16, bias=True, out_bias=True),), Mlp(96, "gelu_tanh", gated=False, bias=True), LAYER)
    tower = HalvedVit(4, 2, None, 64, 3, (), block, patch_bias=True, table=5, resample="nearest", halved=1)
    steps = Group(2, 64), Normalize(LAYER), Linear("linear_1", 256), Act("gelu"), Linear("linear_2", WIDTH)
    return ModelSpec("m", "minicpmv4_6", tower, steps, PLAIN, 1)


def asked() -> ModelSpec:
    """MiniCPM-V 2.6's: two learned queries look at a tower of any grid."""
    block = Block((Attention(4, 4, 16, bias=True, out_bias=True),), Mlp(96, "gelu_tanh", gated=False, bias=True), LAYER)
    tower = PlacedVit(4, 1, None, 64, 3, (), block, patch_bias=True, table=5, resample="bucketed", places=WIDTH)
    steps = Linear("linear_1", WIDTH, bias=False), Resample(2, 2, WIDTH, LAYER), Linear("linear_2", WIDTH, bias=False)
    return ModelSpec("m", "minicpmv", tower, steps, PLAIN, 1)


def deep() -> ModelSpec:
    """Qwen3-VL's: no windows, a table of positions that is resampled, two levels of features, axes that take turns."""
    attention = Attention(4, 4, 16, bias=True, out_bias=True, rope="patches")
    block = Block((attention,), Mlp(96, "gelu_tanh", gated=False, bias=True), Norm("layer", 1e-6))
    tower = QwenVit(4, 2, None, 64, 3, (), block, patch_bias=True, table=5, deepstack=(0, 1))
    head = (Linear("linear_1", 256), Act("gelu"), Linear("linear_2", WIDTH))
    norm, group = Normalize(Norm("layer", 1e-6)), Group(2, 64)
    rope = Rope(1e5, 16, sections=(4, 2, 2), interleaved=True)
    decoder = text(Attention(4, 2, 16, qk_norm=Norm("rms", 1e-6)), rope, deepstack=(0, 1))
    return ModelSpec("m", "qwen3_vl", tower, (norm, group, *head), decoder, 1, deepstack=(group, norm, *head))


def gated() -> ModelSpec:
    """GLM-4V's: a norm of patches, a table by a bicubic, norms of heads, a gated MLP behind two maps; norms on both
    sides of the decoder's parts, RoPE over half of a head.
    """
    norm = Norm("rms", 1e-5)
    attention = Attention(4, 4, 16, rope="patches", qk_norm=norm)
    tower = QwenVit(
        4, 2, None, 64, 2, (), Block((attention,), Mlp(96), norm), patch_bias=True, table=5, resample="cubic",
        post_norm=True, pre_norm=True,
    )  # fmt: skip
    maps = Linear("linear_1", WIDTH), Linear("linear_2", WIDTH, bias=False), Normalize(Norm("layer", 1e-5))
    steps = (Group(2, 64), *maps, Act("gelu"), Gated(Mlp(160), WIDTH))
    decoder = text(Attention(4, 2, 32, bias=True), Rope(1e4, 16, sections=(2, 3, 3)))
    decoder = replace(decoder, blocks=tuple(replace(block, places="sandwich") for block in decoder.blocks))
    return ModelSpec("m", "glm4v", tower, steps, decoder, 1)


def woven() -> ModelSpec:
    """LFM3-VL's tower: convolutions over the grid before and behind attention whose heads share keys."""
    norm = Norm("rms", 1e-5)
    attention = Attention(4, 2, 16, rope="patches", qk_norm=norm)
    tower = QwenVit(4, 2, None, 64, 3, (), Block((attention,), Mlp(96), norm), pre_norm=True, convolving=(0, 2))
    return replace(qwen(), vision=tower, projector=deep().projector)


def averaged() -> ModelSpec:
    """Gemma 4's: a tower whose maps have bounds and whose patches are averaged, a table for columns and one for rows,
    and `sharing` behind it."""
    norm, bare = Norm("rms", 1e-6), Norm("rms", 1e-6, weight=False)
    attention = Attention(4, 4, 16, rope="patches", qk_norm=norm, scale=0.3, v_norm=bare, clipped=True)
    block = Block((attention,), Mlp(96, "gelu_tanh", clipped=True), norm, places="sandwich")
    tower = QwenVit(4, 2, None, 64, 2, (), block, theta=100.0, table=20, resample="none")
    steps = Average(2, 64), Normalize(bare), Linear("linear", WIDTH, bias=False)
    return ModelSpec("m", "averaged", tower, steps, sharing(), 1)


def sharing() -> Decoder:
    """Heads of two sizes, layers that read others' keys and values, per-layer embeddings, layers times a number."""
    norm, bare = Norm("rms", 1e-6), Norm("rms", 1e-6, weight=False)
    near = Attention(4, 2, 16, rope="local", qk_norm=norm, scale=0.3, window=8, v_norm=bare)
    far = replace(near, head_dim=32, rope="main", window=None)
    reading = [replace(attention, reads="earlier", v_norm=None) for attention in (near, far)]
    blocks = tuple(
        Block((attention,), Mlp(80 if attention.v_norm else 112, "gelu_tanh"), norm, places="sandwich", scaled=True)
        for attention in (near, far, *reading)
    )
    ropes = {"main": Rope(1e4, 32, turning=4), "local": Rope(1e3, 16)}
    return Decoder(
        90,
        WIDTH,
        128,
        blocks,
        (0, 1, 0, 2, 3),
        ropes=ropes,
        logit_cap=10.0,
        embed_scale=6.5,
        per_layer=8,
        per_layer_scale=3.5,
    )


def streaming() -> Decoder:
    """Gemma 3n's: streams of states, a map beside the mixer, gates of which few values count, and as `sharing`."""
    norm, bare = Norm("rms", 1e-6), Norm("rms", 1e-6, weight=False)
    near = Attention(4, 2, 16, rope="local", qk_norm=norm, scale=0.3, window=8, v_norm=bare)
    far = replace(near, rope="main", window=None)
    kinds = (near, 1.6), (far, 0.0), (replace(near, reads="earlier", v_norm=None), None)
    blocks = tuple(
        Block((attention,), Mlp(80, "gelu_tanh", cutoff=cutoff), norm, places="sandwich", laurel=16)
        for attention, cutoff in kinds
    )
    ropes = {"main": Rope(1e4, 16), "local": Rope(1e3, 16)}
    return Decoder(
        90, WIDTH, 128, blocks, (0, 1, 0, 2), ropes=ropes, embed_scale=6.5, per_layer=8, per_layer_scale=3.5, streams=3
    )


LAYOUT = Layout(24, (Span(3, (2, 5)), Span(15, (3, 2))))
# Pixels from -1 to 1; views are given, so the rule that would make them plays no part.
IMAGE = ImageSpec(
    IMAGE_SPEC_VERSION, Native(8, 64, 1 << 20), "bicubic", (0, 0, 0), 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 8
)


def features(spec: ModelSpec, weights: Drawn, view: U8) -> F32:
    """Image features (tokens, D) of one view (H, W, 3)."""
    return encode_view(spec, weights, normalize(view, IMAGE))


def logits(spec: ModelSpec, weights: Drawn, embeds: F32, layout: Layout, keep: int = 1) -> F32:
    """Logits (keep, V) of the last positions of a prompt (S, D)."""
    d = spec.decoder
    inputs = decoder_inputs(d, layout, 0, len(embeds))
    found: F32 = decoder(EagerOps(weights, States(), inputs, keep=keep), embeds, d)
    return found


def cosine(ours: F32, theirs: F32) -> float:
    """The lowest between rows."""
    assert ours.shape == theirs.shape
    products = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    return float(products.min())


def picture(rows: int, columns: int, patch: int) -> U8:
    """A view (rows * patch, columns * patch, 3)."""
    return np.random.default_rng(rows).integers(0, 256, (rows * patch, columns * patch, 3), np.uint8)


def sheet() -> ModelSpec:
    """Moondream's: a sheet of squares of 4 x 4 patches, parallel layers, a bias of the head."""
    attention = Attention(4, 4, 16, bias=True, out_bias=True)
    norm, mlp = Norm("layer", 1e-5), Mlp(96, "gelu_tanh", gated=False, bias=True)
    tower = SheetVit(
        4, 1, 4, 64, 2, (), Block((attention,), mlp, norm), patch_bias=True, table=4, post_norm=True, margin=1
    )
    block = Block((replace(attention, kv_heads=2, rope="main"),), mlp, norm, places="parallel")
    decoder = Decoder(90, 64, 128, (block,), (0, 0), norm, {"main": Rope(1e4, 8)}, "prefix", head_bias=True)
    projector = (Linear("linear_1", 96), Act("gelu_tanh"), Linear("linear_2", 64))
    return ModelSpec("m", "moondream1", tower, projector, decoder, 0)


def gemma() -> Decoder:
    """Two kinds of layers, norms behind parts, soft caps, a scale, scaled embeddings, heads that turn in part."""
    attention = Attention(4, 2, 16, rope="main", softcap=20.0, scale=0.3)
    blocks = tuple(
        Block((replace(attention, window=window),), Mlp(80, "gelu_tanh"), Norm("rms", 1e-6), places="sandwich")
        for window in (8, None)
    )
    ropes = {"main": Rope(1e4, 8)}
    return Decoder(90, WIDTH, 128, blocks, (0, 1, 0), ropes=ropes, logit_cap=10.0, embed_scale=6.5)
