"""How llama.cpp names and orders a model's tensors: one table for each of its text architectures and projector types.

Data that both sides of a file share: the exporter writes by a table, the reader finds it by the file's own
`general.architecture` or `clip.projector_type`. Sources: llama.cpp's src/llama-arch.cpp and tools/mtmd/clip-impl.h.
"""

from __future__ import annotations

from edgevlm.models.spec import Decoder
from edgevlm.runtimes.llama import bottlenecks
from edgevlm.runtimes.llama.table import Table

ROPE_FACTORS = "rope_freqs.weight"  # Llama 3.1's, computed from the spec: no weight of the model
ROPE_DIVISORS = ("rope_factors_short.weight", "rope_factors_long.weight")  # LongRoPE's
EMBEDDINGS = "token_embd.weight"  # in every architecture


def level_before_layers(d: Decoder) -> list[int]:
    """Which part of an incoming position is added before each layer, the embedding being part 0; -1: none."""
    return [1 + d.deepstack.index(i - 1) if i - 1 in d.deepstack else -1 for i in range(d.num_layers)]


_TEXT = {
    "decoder.embed": "token_embd",
    "decoder.layers.{i}.norm1": "blk.{i}.attn_norm",
    "decoder.layers.{i}.q": "blk.{i}.attn_q",
    "decoder.layers.{i}.k": "blk.{i}.attn_k",
    "decoder.layers.{i}.v": "blk.{i}.attn_v",
    "decoder.layers.{i}.o": "blk.{i}.attn_output",
    "decoder.layers.{i}.q_norm": "blk.{i}.attn_q_norm",
    "decoder.layers.{i}.k_norm": "blk.{i}.attn_k_norm",
    "decoder.layers.{i}.norm2": "blk.{i}.ffn_norm",
    "decoder.layers.{i}.gate": "blk.{i}.ffn_gate",
    "decoder.layers.{i}.up": "blk.{i}.ffn_up",
    "decoder.layers.{i}.down": "blk.{i}.ffn_down",
    "decoder.norm": "output_norm",
    "decoder.head": "output",
}
_SHORT_CONV = {
    **{f"decoder.layers.{{i}}.{part}": "blk.{i}.shortconv.in_proj" for part in "bcx"},
    "decoder.layers.{i}.conv": "blk.{i}.shortconv.conv",
    "decoder.layers.{i}.out": "blk.{i}.shortconv.out_proj",
}
_DELTA_RULE = {
    "decoder.layers.{i}.norm2": "blk.{i}.post_attention_norm",
    "decoder.layers.{i}.o_gate": "blk.{i}.attn_q",
    "decoder.layers.{i}.qkv": "blk.{i}.attn_qkv",
    "decoder.layers.{i}.z": "blk.{i}.attn_gate",
    "decoder.layers.{i}.rate": "blk.{i}.ssm_beta",
    "decoder.layers.{i}.step": "blk.{i}.ssm_alpha",
    "decoder.layers.{i}.step_bias": "blk.{i}.ssm_dt.bias",
    "decoder.layers.{i}.decay": "blk.{i}.ssm_a",
    "decoder.layers.{i}.conv": "blk.{i}.ssm_conv1d",
    "decoder.layers.{i}.delta_norm": "blk.{i}.ssm_norm",
    "decoder.layers.{i}.out": "blk.{i}.ssm_out",
}
_LAYER = {
    "vision.patch_embedding": "v.patch_embd",
    "vision.layers.{i}.norm1": "v.blk.{i}.ln1",
    "vision.layers.{i}.q": "v.blk.{i}.attn_q",
    "vision.layers.{i}.k": "v.blk.{i}.attn_k",
    "vision.layers.{i}.v": "v.blk.{i}.attn_v",
    "vision.layers.{i}.o": "v.blk.{i}.attn_out",
    "vision.layers.{i}.norm2": "v.blk.{i}.ln2",
}
_MAPS = {"vision.layers.{i}.fc1": "v.blk.{i}.ffn_up", "vision.layers.{i}.fc2": "v.blk.{i}.ffn_down"}
_VIT = {
    **_LAYER,
    **_MAPS,
    "vision.class_token": "v.class_embd",
    "vision.position_embedding": "v.position_embd.weight",
    "vision.pre_norm": "v.pre_ln",
    "vision.post_norm": "v.post_ln",
}
_QWEN_VIT = _LAYER | {
    "vision.layers.{i}.gate": "v.blk.{i}.ffn_gate",
    "vision.layers.{i}.up": "v.blk.{i}.ffn_up",
    "vision.layers.{i}.down": "v.blk.{i}.ffn_down",
}
_TWO_MAPS = {"projector.linear_1": "mm.0", "projector.linear_2": "mm.2"}
_NORM_AND_MAPS = {"projector.norm": "mm.input_norm", "projector.linear_1": "mm.1", "projector.linear_2": "mm.2"}
_ROWS = _QWEN_VIT | _NORM_AND_MAPS | {"vision.pre_norm": "v.pre_ln", "projector.merger": "mm.patch_merger"}
_GROUPS = {"projector.norm": "v.post_ln"} | _TWO_MAPS

_SANDWICH = {
    "decoder.layers.{i}.norm1_after": "blk.{i}.post_attention_norm",
    "decoder.layers.{i}.norm2_after": "blk.{i}.post_ffw_norm",
}
# llama.cpp's own names of its text architectures whose layers have norms on both sides: with windows, without, and with
# windows, a second table of tokens, and layers that read others' keys and values.
WINDOWED, SANDWICH, SHARING = "gemma3", "glm4", "gemma4"
STREAMS = "gemma3n"  # ... and several streams of states
PER_LAYER = "per_layer_token_embd.weight"
_SECOND = {
    "decoder.per_layer_embed": "per_layer_token_embd",
    "decoder.per_layer_map": "per_layer_model_proj",
    "decoder.per_layer_norm": "per_layer_proj_norm",
    "decoder.layers.{i}.per_layer_gate": "blk.{i}.inp_gate",
    "decoder.layers.{i}.per_layer_up": "blk.{i}.proj",
    "decoder.layers.{i}.per_layer_norm": "blk.{i}.post_norm",
    "decoder.layers.{i}.scale": "blk.{i}.layer_output_scale.weight",
}
_STREAMS = {
    **{f"decoder.spread_{n}": "altup_proj" for n in range(1, 4)},
    **{f"decoder.join_{n}": "altup_unembd_proj" for n in range(1, 4)},
    **{f"decoder.layers.{{i}}.router{part}": f"blk.{{i}}.altup_router{part}" for part in ("", "_norm")},
    **{f"decoder.layers.{{i}}.{part}": f"blk.{{i}}.altup_{part}_coef" for part in ("predict", "correct")},
    "decoder.layers.{i}.first_scale": "blk.{i}.altup_correct_scale.weight",
    "decoder.layers.{i}.laurel_in": "blk.{i}.laurel_l",
    "decoder.layers.{i}.laurel_out": "blk.{i}.laurel_r",
    "decoder.layers.{i}.laurel_norm": "blk.{i}.laurel_post_norm",
}
_BOUNDED = {
    "vision.layers.{i}.norm1_after": "v.blk.{i}.attn_post_norm",
    "vision.layers.{i}.norm2_after": "v.blk.{i}.ffn_post_norm",
    "vision.layers.{i}.q_norm": "v.blk.{i}.attn_q_norm",
    "vision.layers.{i}.k_norm": "v.blk.{i}.attn_k_norm",
    **{
        f"vision.layers.{{i}}.{part}.{bound}": f"{_QWEN_VIT[f'vision.layers.{{i}}.{part}']}.{bound}"
        for part in ("q", "k", "v", "o", "gate", "up", "down")
        for bound in ("input_min", "input_max", "output_min", "output_max")
    },
    "vision.position_embedding": "v.position_embd.weight",
    "projector.linear": "mm.input_projection",
}
# ... of the one that adds further levels of features before any layers.
LEVELS = "granite"
_GATED_UP = {f"decoder.layers.{{i}}.{part}": "blk.{i}.ffn_up" for part in ("gate", "up")}  # one on top of the other
TEXT = {
    STREAMS: Table(_TEXT | _SANDWICH | _SECOND | _STREAMS, planes=("altup_proj", "altup_unembd_proj")),
    SHARING: Table(_TEXT | _SANDWICH | _SECOND),
    WINDOWED: Table(_TEXT | _SANDWICH),
    SANDWICH: Table(_TEXT | _SANDWICH | _GATED_UP),
    "phi2": Table(
        {name: theirs for name, theirs in _TEXT.items() if theirs not in ("blk.{i}.ffn_up", "blk.{i}.ffn_down")}
        | {"decoder.layers.{i}.fc1": "blk.{i}.ffn_up", "decoder.layers.{i}.fc2": "blk.{i}.ffn_down"}
    ),
    "llama": Table(_TEXT, pairs=True),
    LEVELS: Table(_TEXT, pairs=True),
    "phi3": Table(_TEXT | _GATED_UP),
    "qwen2": Table(_TEXT),
    "qwen2vl": Table(_TEXT),
    "qwen3": Table(_TEXT),
    "qwen3vl": Table(_TEXT),
    "paddleocr": Table(_TEXT),
    "qwen35": Table(_TEXT | _DELTA_RULE),
    "lfm2": Table(_TEXT | _SHORT_CONV | {"decoder.norm": "token_embd_norm"}),
}
# llama.cpp's own names of its projector types, by the steps that they hold.
WINDOW_QUERIES = "granite4_vision"
SHUFFLE_LINEAR, TWO_LINEAR, SHUFFLE_TWO_LINEAR, GROUP_TWO_LINEAR = "idefics3", "mlp", "internvl", "qwen2.5vl_merger"
TWO_LINEAR_GREY = "janus_pro"  # the same, and grey around pictures that are not square
BROKEN_ROWS, WHOLE_ROWS = "pixtral", "lightonocr"  # staggered RoPE; a break between rows of image tokens, or none
GROUP_TURNED = "paddleocr"  # with a table that is resampled smoothly, and RoPE
GROUP_WHOLE, GROUP_DEEP = "qwen2vl_merger", "qwen3vl_merger"  # without windows; with a table of positions, too
POOLED, AVERAGED = "gemma3", "gemma4v"
BOTTLENECKS = "gemma3nv"
RESAMPLED = "resampler"  # by learned queries
GROUP_HALVED = "minicpmv4_6"  # of a tower that joins neighbours on the way
SQUARES = (TWO_LINEAR, TWO_LINEAR_GREY, POOLED, BOTTLENECKS)  # for which mtmd pads every picture to a square
GROUP_GATED = "glm4v"  # with a gated MLP
GROUP_BETWEEN = "dots_ocr"  # of gated layers with a norm behind them
GROUP_SMOOTH = "lfm2"  # with a table that is resampled smoothly, and no RoPE
NO_TABLE = Table({})  # of a file without pictures
PROJECTORS = {
    SHUFFLE_LINEAR: Table(_VIT | {"projector.linear": "mm.model.fc"}),
    TWO_LINEAR: Table(_VIT | _TWO_MAPS),
    TWO_LINEAR_GREY: Table(_VIT | {"projector.linear_1": "mm.0", "projector.linear_2": "mm.1"}),
    POOLED: Table(
        _VIT | {"projector.norm": "mm.soft_emb_norm", "projector.linear": "mm.input_projection"},
        transposed="projector.linear",
    ),
    BOTTLENECKS: Table(bottlenecks.NAMES, over_grids=True, halved=bottlenecks.BY_CHANNEL),
    AVERAGED: Table(_QWEN_VIT | _BOUNDED, square_patches=True, quartered=True, stacked="vision.position_embedding"),
    BROKEN_ROWS: Table(_ROWS, square_patches=True, tower_pairs=True, by_channel="projector.merger", line_break=True),
    WHOLE_ROWS: Table(_ROWS, square_patches=True, tower_pairs=True, by_channel="projector.merger", longest_edge=True),
    GROUP_TURNED: Table(_VIT | _NORM_AND_MAPS, square_patches=True),
    SHUFFLE_TWO_LINEAR: Table(
        _VIT
        | {
            "projector.norm": "mm.model.mlp.0",
            "projector.linear_1": "mm.model.mlp.1",
            "projector.linear_2": "mm.model.mlp.3",
        },
        class_last=True,
    ),
    GROUP_TWO_LINEAR: Table(_QWEN_VIT | _GROUPS, square_patches=True),
    GROUP_SMOOTH: Table(_VIT | _NORM_AND_MAPS, square_patches=True),
    GROUP_BETWEEN: Table(
        _QWEN_VIT
        | _TWO_MAPS
        | {"vision.pre_norm": "v.pre_ln", "vision.post_norm": "mm.post_norm", "projector.norm": "mm.input_norm"},
        square_patches=True,
    ),
    GROUP_GATED: Table(
        _QWEN_VIT
        | {
            **{f"vision.layers.{{i}}.{part}_norm": f"v.blk.{{i}}.attn_{part}_norm" for part in "qk"},
            "vision.pre_norm": "v.norm_embd",
            "vision.position_embedding": "v.position_embd.weight",
            "vision.post_norm": "v.post_ln",
            "projector.linear_1": "mm.patch_merger",
            "projector.linear_2": "mm.model.fc",
            "projector.norm": "mm.post_norm",
            **{f"projector.{part}": f"mm.{part}" for part in ("gate", "up", "down")},
        },
        square_patches=True,
        by_channel="projector.linear_1",
        kernel=True,
    ),
    GROUP_WHOLE: Table(_LAYER | _MAPS | _GROUPS, square_patches=True),
    GROUP_DEEP: Table(
        {
            **_LAYER,
            **_MAPS,
            **_GROUPS,
            **{f"vision.layers.{{i}}.{part}": "v.blk.{i}.attn_qkv" for part in "qkv"},
            "vision.position_embedding": "v.position_embd.weight",
            "projector.deepstack.{i}.norm": "v.deepstack.{i}.norm",
            "projector.deepstack.{i}.linear_1": "v.deepstack.{i}.fc1",
            "projector.deepstack.{i}.linear_2": "v.deepstack.{i}.fc2",
        },
        square_patches=True,
    ),
}
