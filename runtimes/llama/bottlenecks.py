"""llama.cpp's names of a tower of inverted bottlenecks, layer by layer: tools/mtmd/clip-impl.h, `TN_MNV5_*`.

It numbers layers within stages, of which each begins with the one layer that makes the grid smaller, and finds by the
names that a file holds of which kind a layer is. We write the one order of kinds that is published.
"""

from __future__ import annotations

from collections.abc import Mapping

# Ours -> theirs, by kind of layer.
FUSED: Mapping[str, str] = {
    "expand": "conv_exp",
    "expand.norm": "bn1",
    "project": "conv_pwl",
    "project.norm": "bn2",
}
APART: Mapping[str, str] = {
    **{"first": "dw_start.conv", "expand": "pw_exp.conv", "middle": "dw_mid.conv", "project": "pw_proj.conv"},
    **{"first.norm": "dw_start.bn", "expand.norm": "pw_exp.bn", "middle.norm": "dw_mid.bn"},
    "project.norm": "pw_proj.bn",
}
ATTENDING: Mapping[str, str] = {
    "norm1": "norm",
    "q": "attn.query.proj",
    "k": "attn.key.proj",
    "v": "attn.value.proj",
    "o": "attn.output.proj",
}
FEWER_KEYS: Mapping[str, str] = {
    "norm1": "norm",
    "query": "attn.query.proj",
    "out": "attn.output.proj",
    **{part: f"attn.{part}.proj" for part in ("key", "value")},
    **{f"{part}_kernel": f"attn.{part}.down_conv" for part in ("key", "value")},
    **{f"{part}_kernel.norm": f"attn.{part}.norm" for part in ("key", "value")},
}
STAGES = (
    (FUSED,) * 3,
    (APART,) * 5,
    (APART,) * 9 + (FEWER_KEYS, APART) * 14,
    (APART,) + (ATTENDING, APART) * 19,
)
LAYERS = [(stage, n, kind) for stage, kinds in enumerate(STAGES) for n, kind in enumerate(kinds)]
# Kernels of each channel by itself: llama.cpp multiplies in fp16 there, and takes kernels in nothing else.
BY_CHANNEL = ("first", "middle", "key_kernel", "value_kernel")
NAMES: Mapping[str, str] = {
    **{f"vision.{ours}": f"v.conv_stem.{theirs}" for ours, theirs in (("stem", "conv"), ("stem.norm", "bn"))},
    **{
        f"vision.layers.{layer}.{ours}": f"v.blk.{stage}.{n}.{theirs}"
        for layer, (stage, n, kind) in enumerate(LAYERS)
        for ours, theirs in kind.items()
    },
    **{
        f"vision.fusion.{part}{ours}": f"v.msfa.ffn.{theirs}"
        for part, stem in (("expand", "pw_exp"), ("project", "pw_proj"))
        for ours, theirs in (("", f"{stem}.conv"), (".norm", f"{stem}.bn"))
    },
    "vision.norm": "v.msfa.norm",
    "projector.norm": "mm.soft_emb_norm",
    "projector.linear": "mm.input_projection",
}
