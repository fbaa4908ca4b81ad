"""Tensor names of a FastViT whose branches are folded, in the two layouts that it has: timm's and its authors'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgevlm.checkpoint.families.tensors import BatchNormed, Names, Plain, Pointwise, Scaled, Source, Split
from edgevlm.models.spec import Attention, Block, Mlp, Norm
from edgevlm.models.towers.conv_vit import ConvVit

HEAD = 32  # channels of an attention head
ATTENDING = 2  # the last stages


@dataclass(frozen=True)
class Layout:
    """Stems below the tower's prefix. {stage}: its number; {place}: its place in one list of everything behind the
    stem, {above} and {before}: those of its positions and of the step to its grid; {n}: a kernel or a block.
    """

    stem: str
    block: str
    coarser: str
    mixed: str
    positions: str
    last: str
    squeeze: str
    excite: str
    mlp: str  # inside a block
    scale: str  # behind the name of a layer scale

    def name(self, pattern: str, stage: int, n: int = 0) -> str:
        attends = max(0, stage - 2)  # of five stages, how many so far have positions of their own
        place = 2 * stage + attends
        above, before = place - 1, place - 1 - (attends > 0)
        found: str = getattr(self, pattern).format(stage=stage, place=place, above=above, before=before, n=n)
        return found


TIMM = Layout(
    stem="stem.{n}.reparam_conv",
    block="stages.{stage}.blocks.{n}.",
    coarser="stages.{stage}.downsample.proj.0.reparam_conv",
    mixed="stages.{stage}.downsample.proj.1.reparam_conv",
    positions="stages.{stage}.pos_emb.reparam_conv",
    last="final_conv.reparam_conv",
    squeeze="final_conv.se.fc1",
    excite="final_conv.se.fc2",
    mlp="mlp",
    scale=".gamma",
)
OWN = Layout(
    stem="patch_embed.{n}.reparam_conv",
    block="network.{place}.{n}.",
    coarser="network.{before}.proj.0.lkb_reparam",
    mixed="network.{before}.proj.1.reparam_conv",
    positions="network.{above}.reparam_conv",
    last="conv_exp.reparam_conv",
    squeeze="conv_exp.se.reduce",
    excite="conv_exp.se.expand",
    mlp="convffn",
    scale="",
)


def fastvit(widths: tuple[int, ...], depths: tuple[int, ...], side: int) -> ConvVit:
    """The tower for pictures of about `side` pixels: whole states."""
    patch, count = 2 ** (len(widths) + 1), max(1, widths[-1] // HEAD)
    attention = Attention(count, count, HEAD, out_bias=True)
    return ConvVit(
        image_size=side // patch * patch,
        patch_size=patch,
        hidden_size=2 * widths[-1],
        num_layers=sum(depths),
        block=Block((attention,), Mlp(4 * widths[-1], "gelu", gated=False, bias=True), Norm("layer", 1e-5)),
        widths=widths,
        depths=depths,
        attending=ATTENDING,
    )


def fastvit_names(layout: Layout, tower: str, vision: ConvVit) -> Names:
    """tower: the prefix of its names."""
    places = [(stage, n) for stage, depth in enumerate(vision.depths) for n in range(depth)]
    last, stages = len(vision.widths) - 1, range(1, len(vision.widths))

    def block(layer: int) -> str:
        return tower + layout.name("block", *places[layer])

    def out(layer: int) -> Source:
        scale = "layer_scale_2" if places[layer][0] > last - vision.attending else "layer_scale"
        return Scaled(Pointwise(f"{block(layer)}{layout.mlp}.fc2"), f"{block(layer)}{scale}{layout.scale}", 2)

    def mixed(layer: int) -> Source:
        return Scaled(Plain(f"{block(layer)}token_mixer.proj"), f"{block(layer)}layer_scale_1{layout.scale}", 2)

    def part(start: int) -> Callable[[int], Source]:
        def rows(layer: int) -> Source:
            width = vision.widths[places[layer][0]]
            return Split(f"{block(layer)}token_mixer.qkv", start * width, 3 * width)

        return rows

    def stem(n: int) -> str:
        return tower + layout.name("stem", 0, n)

    def conv(layer: int) -> Source:
        stem = f"{block(layer)}{layout.mlp}.conv"
        return BatchNormed(f"{stem}.conv", f"{stem}.bn")

    return {
        **{f"vision.stem_{n}": stem(n - 1) for n in (1, 2)},
        "vision.stem_3": Pointwise(stem(2)),
        **{f"vision.coarser_{n}": tower + layout.name("coarser", n) for n in stages},
        **{f"vision.mixed_{n}": Pointwise(tower + layout.name("mixed", n)) for n in stages},
        **{f"vision.positions_{n}": tower + layout.name("positions", n) for n in stages},
        "vision.layers.{i}.norm1": lambda i: Plain(f"{block(i)}norm"),
        **{f"vision.layers.{{i}}.{name}": part(n) for n, name in enumerate("qkv")},
        "vision.layers.{i}.o": mixed,
        "vision.layers.{i}.mix": lambda i: Plain(f"{block(i)}token_mixer.reparam_conv"),
        "vision.layers.{i}.conv": conv,
        "vision.layers.{i}.fc1": lambda i: Pointwise(f"{block(i)}{layout.mlp}.fc1"),
        "vision.layers.{i}.fc2": out,
        "vision.last": tower + layout.last,
        "vision.squeeze": Pointwise(tower + layout.squeeze),
        "vision.excite": Pointwise(tower + layout.excite),
    }
