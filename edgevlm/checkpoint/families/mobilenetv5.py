"""timm's MobileNetV5 encoder (mobilenetv5.py there): its layers, by its one option, and its tensor names."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families.tensors import Names, Plain, Pointwise, Scaled, Source, prefix_of, times
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import Attention, Block, Mlp, Norm
from edgevlm.models.towers.mobilenet import Attending, Bottleneck, MobileNet

ARCHITECTURE, STEM = "mobilenetv5_300m_enc", "conv_stem.conv.weight"
SIDE, WIDTH = 16, 2048  # states per side of every picture, and channels of one
# As timm defines them. Kernels (a: before the widening map, k: behind it, or instead of it), strides (v: on the way to
# keys and values), heads and their size (d), times as wide (e), channels (c).
STAGES = (
    ("er_k3_s2_e4_c128", *("er_k3_s1_e4_c128",) * 2),
    ("uir_a3_k5_s2_e6_c256", *("uir_a5_k0_s1_e4_c256", "uir_a3_k0_s1_e4_c256") * 2),
    (
        "uir_a5_k5_s2_e6_c640", *("uir_a5_k0_s1_e4_c640",) * 7, "uir_a0_k0_s1_e1_c640",
        *("mqa_k3_h12_v2_d64_c640", "uir_a0_k0_s1_e2_c640") * 14,
    ),
    ("uir_a5_k5_s2_e6_c1280", *("mqa_k3_h16_v1_d96_c1280", "uir_a0_k0_s1_e2_c1280") * 19),
)  # fmt: skip
FUSED = (640, 1280)  # channels of the two grids
PLACES = [(stage, n, name.split("_")[0]) for stage, names in enumerate(STAGES) for n, name in enumerate(names)]
_UIR = {"first": "dw_start", "expand": "pw_exp", "middle": "dw_mid", "project": "pw_proj"}
_MAPS = {"q": "query", "k": "key", "v": "value", "o": "output", "out": "output"}
# By kind of layer: how a weight is stored, and where.
NAMES: dict[str, dict[str, tuple[Callable[[str], Source], str]]] = {
    "er": {
        "expand": (Plain, "conv_exp"),
        "expand.norm": (Plain, "bn1"),
        "project": (Pointwise, "conv_pwl"),
        "project.norm": (Plain, "bn2"),
    },
    "uir": {
        **{ours: (Pointwise if "pw" in theirs else Plain, f"{theirs}.conv") for ours, theirs in _UIR.items()},
        **{f"{ours}.norm": (Plain, f"{theirs}.bn") for ours, theirs in _UIR.items()},
    },
    "mqa": {
        "norm1": (Plain, "norm"),
        **{ours: (Pointwise, f"attn.{_MAPS.get(ours, ours)}.proj") for ours in (*_MAPS, "query", "key", "value")},
        **{f"{part}_kernel": (Plain, f"attn.{part}.down_conv") for part in ("key", "value")},
        **{f"{part}_kernel.norm": (Plain, f"attn.{part}.norm") for part in ("key", "value")},
    },
}
SCALED = ("project.norm", "o", "out")  # folded with the layer scale, which "er" has not


def read_tower(checkpoint: Checkpoint, config: JsonFile) -> MobileNet:
    """Of pictures of the size that the processor gives them: the tower has as many tokens for any."""
    vision = config.section("vision_config")
    vision.choice("architecture", ARCHITECTURE, {ARCHITECTURE: ARCHITECTURE})
    vision.choice("hidden_size", WIDTH, {WIDTH: f"{WIDTH}"})
    options = vision.section("model_args")
    if other := sorted(set(options.data) - {"channel_multiplier"}):
        raise options.wrong(other[0], "nothing but channel_multiplier")
    image = ProcessorFiles(checkpoint.processor).image
    if (side := image.square("size")) % SIDE**2:
        raise image.wrong("size", f"a multiple of {SIDE**2} pixels per side")
    multiplier = options.number("channel_multiplier", 1.0)
    stem = 64 if multiplier < 1 else _rounded(64 * multiplier)
    layers = tuple(_layers(stem, multiplier))
    (attention,) = {layer.attention for layer in layers[-2:] if isinstance(layer, Attending)}
    inner = 2 * sum(_rounded(channels * multiplier) for channels in FUSED)
    return MobileNet(
        image_size=side,
        patch_size=side // SIDE,
        hidden_size=WIDTH,
        num_layers=len(layers),
        block=Block((attention,), Mlp(inner, "gelu_tanh", gated=False), Norm("rms", 1e-6)),
        stem=stem,
        layers=layers,
        fine=len(layers) - len(STAGES[-1]),
    )


def _layers(before: int, multiplier: float) -> Iterator[Bottleneck | Attending]:
    for kind, *options in (name.split("_") for names in STAGES for name in names):
        o = {option[0]: int(option[1:]) for option in options}
        width = _rounded(o["c"] * multiplier)
        if kind == "mqa":
            yield Attending(Attention(o["h"], 1, o["d"]), o["k"], o["v"])
        elif kind == "er":
            yield Bottleneck(width, o["e"] * before, fused=o["k"], stride=o["s"])
        else:
            yield Bottleneck(width, o["e"] * before, o["a"], o["k"], stride=o["s"])
        before = width


def _rounded(channels: float) -> int:
    """The nearest multiple of 8, or the next where that takes more than a tenth away."""
    found = max(8, int(channels + 4) // 8 * 8)
    return found + 8 if found < 0.9 * channels else found


def tower_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    """Layer scales are folded, and what transformers multiplies the features by, the root of their channels."""
    tower = prefix_of(checkpoint, STEM)

    def source(ours: str) -> Callable[[int], Source]:
        def made(layer: int) -> Source:
            stage, n, kind = PLACES[layer]
            form, theirs = NAMES[kind][ours]
            found: Source = form(f"{tower}blocks.{stage}.{n}.{theirs}")
            scaled = kind != "er" and ours in SCALED
            return Scaled(found, f"{tower}blocks.{stage}.{n}.layer_scale.gamma") if scaled else found

        return made

    return {
        "vision.stem": f"{tower}conv_stem.conv",
        "vision.stem.norm": f"{tower}conv_stem.bn",
        **{f"vision.layers.{{i}}.{ours}": source(ours) for names in NAMES.values() for ours in names},
        "vision.fusion.expand": Pointwise(f"{tower}msfa.ffn.pw_exp.conv"),
        "vision.fusion.expand.norm": f"{tower}msfa.ffn.pw_exp.bn",
        "vision.fusion.project": Pointwise(f"{tower}msfa.ffn.pw_proj.conv"),
        "vision.fusion.project.norm": f"{tower}msfa.ffn.pw_proj.bn",
        "vision.norm": times(f"{tower}msfa.norm", WIDTH**0.5),
    }
