"""How llama.cpp names and orders a model's tensors: one table for each of its text architectures and projector types.

Data that both sides of a file share: the exporter writes by a table, the reader finds it by the file's own
`general.architecture` or `clip.projector_type`. Sources: llama.cpp's src/llama-arch.cpp and tools/mtmd/clip-impl.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Group
from edgevlm.models.spec import Attention, Decoder, DeltaRule

ROPE_FACTORS = "rope_freqs.weight"  # Llama 3.1's, computed from the spec: no weight of the model
ROPE_DIVISORS = ("rope_factors_short.weight", "rope_factors_long.weight")  # LongRoPE's
EMBEDDINGS = "token_embd.weight"  # in every architecture


@dataclass(frozen=True)
class Table:
    """Canonical stems -> llama.cpp's, "{i}" is the layer; and where rows stand elsewhere than in a checkpoint."""

    names: Mapping[str, str]
    pairs: bool = False  # RoPE rotates neighbouring rows of q and k; a checkpoint's rotates split halves
    class_last: bool = False  # the class token and its row of the position table come after the patches
    square_patches: bool = False  # the patch embedding is stored as a convolution (D, 3, p, p)
    tower_pairs: bool = False  # RoPE rotates neighbouring rows of the tower's q and k
    by_channel: str = ""  # a map whose columns stand channel by channel, where a checkpoint's stand patch by patch
    kernel: bool = False  # that map is stored as a convolution, which has no blocks
    transposed: str = ""  # a map that is stored as (inputs, outputs)
    line_break: bool = False  # the encoder gives a row more for each line of image tokens but the last
    quartered: bool = False  # RoPE turns the halves of the tower's heads apart, each in halves of its own
    stacked: str = ""  # a weight whose two halves are one tensor of three axes
    planes: tuple[str, ...] = ()  # tensors of three axes, of which each weight is a part
    longest_edge: bool = False  # mtmd scales every picture to some length, unless no more tokens are allowed

    def name(self, weight: str) -> str:
        """The tensor that holds a canonical weight; KeyError where the table has none."""
        pattern, layer, what = _pattern(weight)
        return self.names[pattern].replace("{i}", layer) + what

    def part(self, weight: str) -> tuple[int, int]:
        """Which of the equal parts of its tensor a weight is, and of how many, one on top of the other."""
        pattern = _pattern(weight)[0]
        together = [other for other, theirs in self.names.items() if theirs == self.names[pattern]]
        return together.index(pattern), len(together)

    def order(self, weight: str, spec: ModelSpec) -> npt.NDArray[np.intp] | None:
        """Row i of the file is row `order[i]` of the weight; None where rows keep their order."""
        part = weight.split(".")
        if self.class_last and weight == "vision.position_embedding":
            return np.roll(np.arange(spec.vision.num_patches + 1), -1)  # type: ignore[union-attr]
        if part[1:2] != ["layers"]:
            return None
        tower = part[0] == "vision"
        attention = spec.vision.block.mixers[0] if tower else spec.decoder.block(int(part[2])).mixers[0]
        if isinstance(attention, DeltaRule):
            return _turned_rows(attention, part[3])
        if tower and self.quartered and part[3] in ("q", "k", "q_norm", "k_norm") and part[-1] == "weight":
            assert isinstance(attention, Attention)
            return _quartered(attention, part[3])
        if not (self.tower_pairs if tower else self.pairs) or part[3] not in ("q", "k"):
            return None
        assert isinstance(attention, Attention)
        rows = (attention.heads if part[3] == "q" else attention.kv_heads) * attention.head_dim
        # `LlamaModel.permute` of llama.cpp's converter
        return np.arange(rows).reshape(-1, 2, attention.head_dim // 2).swapaxes(1, 2).reshape(-1)

    def planes_of(self, weight: str) -> int:
        """How many planes of a tensor of three axes it is; 0: its tensor has fewer axes."""
        return 2 if weight == self.stacked else int(self.names[_pattern(weight)[0]] in self.planes)

    def scatters(self, weight: str) -> bool:
        """Whether columns leave their blocks: what has a scale for each block can only be stored as values."""
        return weight == f"{self.by_channel}.weight"

    def turns(self, weight: str) -> bool:
        """Whether it is stored as (inputs, outputs): what has a scale for each row can only be stored as values."""
        return weight == f"{self.transposed}.weight"

    def columns(self, weight: str, spec: ModelSpec) -> npt.NDArray[np.intp] | None:
        """The same of its columns."""
        part = weight.split(".")
        if self.scatters(weight):
            group = next(step for step in spec.projector if isinstance(step, Group))
            return np.arange(group.side**2 * group.width).reshape(-1, group.width).T.reshape(-1)
        if part[:2] != ["decoder", "layers"] or part[3] != "out":
            return None
        mixer = spec.decoder.block(int(part[2])).mixers[0]
        return _turned_rows(mixer, "z") if isinstance(mixer, DeltaRule) else None

    def by_head(self, weight: str, spec: ModelSpec) -> npt.NDArray[np.intp] | None:
        """Row i of a tensor whose two weights take turns, head by head, is row `by_head[i]` of one on top of the other.

        None where they do not.
        """
        part = weight.split(".")
        if part[:2] != ["decoder", "layers"] or part[3] not in ("q", "o_gate"):
            return None
        mixer = spec.decoder.block(int(part[2])).mixers[0]
        if not isinstance(mixer, Attention) or not mixer.gated:
            return None
        rows = 2 * mixer.heads * mixer.head_dim
        return np.arange(rows).reshape(2, mixer.heads, -1).swapaxes(0, 1).reshape(-1)


def frame_name(kernel: str, frame: int) -> str:
    """The tensor of one frame's kernel, of a patch embedding of several frames."""
    return f"{kernel}.{frame}" if frame else kernel


def level_before_layers(d: Decoder) -> list[int]:
    """Which part of an incoming position is added before each layer, the embedding being part 0; -1: none."""
    return [1 + d.deepstack.index(i - 1) if i - 1 in d.deepstack else -1 for i in range(d.num_layers)]


def _quartered(attention: Attention, part: str) -> npt.NDArray[np.intp]:
    """Ours turns by row in the first and third quarter of a head, by column in the others; theirs by column first."""
    heads = {"q": attention.heads, "k": attention.kv_heads}.get(part, 1)
    rows = np.arange(heads * attention.head_dim).reshape(heads, 4, -1)
    return rows[:, [1, 3, 0, 2]].reshape(-1)


def _turned_rows(rule: DeltaRule, part: str) -> npt.NDArray[np.intp] | None:
    """llama.cpp has value heads in turns of key heads: the first ones of all key heads, then the second ones.

    `_LinearAttentionVReorderBase` of its converter.
    """
    each = rule.value_heads // rule.key_heads
    sizes = {"qkv": rule.value_dim, "conv": rule.value_dim, "z": rule.value_dim}
    if each == 1 or part not in {*sizes, "rate", "step", "step_bias", "decay"}:
        return None
    before = rule.channels - rule.value_heads * rule.value_dim if part in ("qkv", "conv") else 0
    rows = np.arange(rule.value_heads * sizes.get(part, 1)).reshape(rule.key_heads, each, -1)
    return np.concatenate([np.arange(before), before + rows.swapaxes(0, 1).reshape(-1)])


def _pattern(weight: str) -> tuple[str, str, str]:
    """A weight's stem with "{i}" for its layer, the layer, and what it is of the stem: ".weight", ".bias" or ""."""
    stem = weight.removesuffix(".weight").removesuffix(".bias")
    layer = next((part for part in stem.split(".") if part.isdigit()), "")
    return stem.replace(f".{layer}.", ".{i}.", 1) if layer else stem, layer, weight[len(stem) :]


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
RESAMPLED = "resampler"  # by learned queries
GROUP_HALVED = "minicpmv4_6"  # of a tower that joins neighbours on the way
SQUARES = (TWO_LINEAR, TWO_LINEAR_GREY, POOLED)  # for which mtmd pads every picture to a square
GROUP_GATED = "glm4v"  # with a gated MLP
GROUP_BETWEEN = "dots_ocr"  # of gated layers with a norm behind them
GROUP_SMOOTH = "lfm2"  # with a table that is resampled smoothly, and no RoPE
PROJECTORS = {
    SHUFFLE_LINEAR: Table(_VIT | {"projector.linear": "mm.model.fc"}),
    TWO_LINEAR: Table(_VIT | _TWO_MAPS),
    TWO_LINEAR_GREY: Table(_VIT | {"projector.linear_1": "mm.0", "projector.linear_2": "mm.1"}),
    POOLED: Table(
        _VIT | {"projector.norm": "mm.soft_emb_norm", "projector.linear": "mm.input_projection"},
        transposed="projector.linear",
    ),
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
