"""The bounds of every number and word of a model's description."""

from __future__ import annotations

from edgevlm.io import limits
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
    Queries,
    Resample,
    Shuffle,
    Take,
)
from edgevlm.models.region import Region
from edgevlm.models.spec import (
    ACTS,
    CACHES,
    Attention,
    Block,
    Decoder,
    DeltaRule,
    Mlp,
    Norm,
    Rope,
    RopeScaling,
    ShortConv,
)
from edgevlm.models.towers import tables
from edgevlm.models.towers.conv_vit import ConvVit
from edgevlm.models.towers.halved_vit import HalvedVit
from edgevlm.models.towers.mobilenet import Attending, Bottleneck, MobileNet
from edgevlm.models.towers.placed_vit import PlacedVit
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.models.towers.sheet_vit import SheetVit
from edgevlm.models.towers.vit import Vit
from edgevlm.models.window_queries import WindowQueries

TINY = 1e-18  # a number that is divided by
Bound = tuple[float, float] | tuple[str, ...]
_POSITIVE = (TINY, limits.REAL)
# By class and field: the least and the most of a number and of the numbers in a tuple, or the words that are known.
# () is any text. A field that holds other parts has no entry.
BOUNDS: dict[type, dict[str, Bound]] = {
    ModelSpec: {"name": (), "family": (), "image_token_id": (0, limits.VOCABULARY), "markers": (0, limits.VOCABULARY)},
    Region: {
        "end": (0, limits.VOCABULARY), "inner": (1, limits.MLP_WIDTH), "bins": (1, limits.MLP_WIDTH),
        "coord_features": (2, limits.MLP_WIDTH), "size_features": (2, limits.MLP_WIDTH),
    },
    Norm: {"kind": ("rms", "layer"), "eps": (0.0, 1.0)},
    RopeScaling: {
        "factor": _POSITIVE, "low_freq_factor": _POSITIVE, "high_freq_factor": _POSITIVE,
        "original_context": (1, limits.CONTEXT), "kind": ("llama3", "yarn"),
    },
    Rope: {
        "theta": _POSITIVE, "size": (2, limits.HEAD_DIM), "sections": (0, limits.HEAD_DIM), "factor": _POSITIVE,
        "turning": (1, limits.HEAD_DIM), "divisors": _POSITIVE, "gain": _POSITIVE,
    },
    Attention: {
        "heads": (1, limits.HEADS), "kv_heads": (1, limits.HEADS), "head_dim": (1, limits.HEAD_DIM), "rope": (),
        "second_rope": (),
        "scale": _POSITIVE, "softcap": _POSITIVE, "window": (1, limits.CONTEXT),
        "reads": ("self", "memory", "earlier"), "gated": ("values", "heads"), "kind": ("attention",),
        "cache": CACHES,
    },
    ShortConv: {"kernel": (2, limits.KERNEL), "kind": ("short_conv",)},
    DeltaRule: {
        "key_heads": (1, limits.HEADS), "value_heads": (1, limits.HEADS), "key_dim": (1, limits.HEAD_DIM),
        "value_dim": (1, limits.HEAD_DIM), "kernel": (2, limits.KERNEL), "kind": ("delta_rule",),
    },
    Mlp: {"size": (1, limits.MLP_WIDTH), "act": ACTS, "cutoff": (-limits.DEVIATIONS, limits.DEVIATIONS)},
    Block: {"places": ("pre", "sandwich", "post", "parallel"), "laurel": (0, limits.WIDTH)},
    Decoder: {
        "vocab_size": (1, limits.VOCABULARY), "hidden_size": (1, limits.WIDTH), "context_length": (1, limits.CONTEXT),
        "layers": (0, limits.BLOCK_KINDS), "mask": ("causal", "image", "prompt", "prefix"),
        "places": ("grid", "line", "canvas", "number"),
        "learned_positions": (0, limits.CONTEXT), "embed_scale": _POSITIVE, "logit_cap": _POSITIVE,
        "deepstack": (0, limits.LAYERS), "per_layer": (0, limits.WIDTH), "per_layer_scale": _POSITIVE,
        "streams": (1, limits.STREAMS),
    },
    Vit: {
        "image_size": (1, limits.IMAGE_SIDE), "patch_size": (1, limits.PATCH_SIDE), "hidden_size": (1, limits.WIDTH),
        "num_layers": (1, limits.LAYERS), "taps": (1, limits.LAYERS), "deepstack": (0, limits.LAYERS), "kind": ("vit",),
    },
    ConvVit: {
        "image_size": (1, limits.IMAGE_SIDE), "patch_size": (1, limits.IMAGE_SIDE), "hidden_size": (1, limits.WIDTH),
        "num_layers": (1, limits.LAYERS), "taps": (1, limits.LAYERS), "deepstack": (0, limits.LAYERS),
        "widths": (1, limits.WIDTH),
        "depths": (0, limits.LAYERS), "attending": (0, limits.STAGES), "squeeze": (1, limits.WIDTH),
        "kind": ("conv_vit",),
    },
    MobileNet: {
        "image_size": (1, limits.IMAGE_SIDE), "patch_size": (1, limits.IMAGE_SIDE), "hidden_size": (1, limits.WIDTH),
        "num_layers": (1, limits.LAYERS), "taps": (1, limits.LAYERS), "deepstack": (0, limits.LAYERS),
        "stem": (1, limits.WIDTH), "fine": (1, limits.LAYERS), "kind": ("mobilenet",),
    },
    Bottleneck: {
        "width": (1, limits.WIDTH), "inner": (1, limits.MLP_WIDTH), "first": (0, limits.GRID_KERNEL),
        "middle": (0, limits.GRID_KERNEL), "fused": (0, limits.GRID_KERNEL), "stride": (1, limits.SHUFFLE),
        "kind": ("bottleneck",),
    },
    Attending: {"kernel": (1, limits.GRID_KERNEL), "stride": (1, limits.SHUFFLE), "kind": ("attending",)},
    QwenVit: {
        "patch_size": (1, limits.PATCH_SIDE), "merge": (1, limits.SHUFFLE), "window": (1, limits.WINDOW_SIDE),
        "hidden_size": (1, limits.WIDTH), "num_layers": (1, limits.LAYERS), "full": (0, limits.LAYERS),
        "theta": _POSITIVE, "table": (0, limits.TABLE_ROWS), "frames": (1, limits.GROUP),
        "filler": (-1e3, 1e3),
        "resample": tables.KINDS, "deepstack": (0, limits.LAYERS),
        "convolving": (0, limits.LAYERS), "kernel": (1, limits.GRID_KERNEL), "kind": ("qwen_vit",),
    },
    Linear: {"name": (), "rows": (1, limits.MLP_WIDTH), "kind": ("linear",)},
    Gated: {"rows": (1, limits.MLP_WIDTH), "kind": ("gated",)},
    Act: {"act": (*ACTS, "softmax"), "kind": ("act",)},
    Normalize: {"name": (), "kind": ("norm",)},
    Positions: {"rows": (1, limits.PATCHES), "width": (1, limits.WIDTH), "kind": ("positions",)},
    Shuffle: {"scale": (1, limits.SHUFFLE), "width": (1, limits.WIDTH), "kind": ("shuffle",)},
    Pool: {"scale": (1, limits.SHUFFLE), "width": (1, limits.WIDTH), "kind": ("pool",)},
    Group: {"side": (1, limits.SHUFFLE), "width": (1, limits.MLP_WIDTH), "kind": ("group",)},
    Average: {"side": (1, limits.SHUFFLE), "width": (1, limits.WIDTH), "kind": ("average",)},
    Take: {"index": (), "kind": ("take",)},
    Resample: {
        "count": (1, limits.PATCHES), "heads": (1, limits.HEADS), "width": (1, limits.WIDTH), "kind": ("resample",)
    },
    WindowQueries: {
        "window": (1, limits.WINDOW_SIDE), "query": (1, limits.WINDOW_SIDE), "states": (0, limits.TAPS),
        "corners": (-1, 3), "width": (1, limits.WIDTH), "rows": (1, limits.WIDTH), "kind": ("window_queries",),
    },
    Queries: {"connector": ("qformer", "resampler"), "count": (1, limits.PATCHES), "kind": ("queries",)},
}  # fmt: skip


BOUNDS[HalvedVit] = BOUNDS[QwenVit] | {"halved": (0, limits.LAYERS), "kind": ("halved_vit",)}
BOUNDS[PlacedVit] = BOUNDS[QwenVit] | {"places": (4, limits.WIDTH), "kind": ("placed_vit",)}
BOUNDS[SheetVit] = BOUNDS[QwenVit] | {"margin": (0, limits.WINDOW_SIDE), "kind": ("sheet_vit",)}
