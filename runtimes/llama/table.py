"""A table of llama.cpp's names: which tensor holds a weight, and where its rows and columns stand there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Group
from edgevlm.models.spec import Attention, DeltaRule


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
    over_grids: bool = False  # the tower's maps are convolutions, which have no blocks; so is the shape of its one bias
    halved: tuple[str, ...] = ()  # kernels that are stored in fp16, whatever the rest is

    def name(self, weight: str) -> str:
        """The tensor that holds a canonical weight; KeyError where the table has none."""
        pattern, layer, what = self._pattern(weight)
        return self.names[pattern].replace("{i}", layer) + what

    def _pattern(self, weight: str) -> tuple[str, str, str]:
        """As the function; a stem whose layer has names of its own is its own pattern."""
        stem = weight.removesuffix(".weight").removesuffix(".bias")
        return (stem, "", weight[len(stem) :]) if stem in self.names else _pattern(weight)

    def part(self, weight: str) -> tuple[int, int]:
        """Which of the equal parts of its tensor a weight is, and of how many, one on top of the other."""
        pattern = self._pattern(weight)[0]
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
        return 2 if weight == self.stacked else int(self.names[self._pattern(weight)[0]] in self.planes)

    def spans(self, weight: str, is_linear: bool) -> bool:
        """Whether it is stored with two axes of one behind its own."""
        return self.over_grids and weight.startswith("vision.") and (is_linear or weight.endswith(".bias"))

    def halves(self, weight: str) -> bool:
        """Whether it is stored in fp16, whatever the rest is."""
        return weight.removesuffix(".weight").rpartition(".")[2] in self.halved

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
