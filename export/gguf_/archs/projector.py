"""What a projector type of llama.cpp is: its keys, the tensors it adds, and what it cannot compute.

Sources: tools/mtmd/clip.cpp and tools/mtmd/models. All take GELU's tanh form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from edgevlm.export.gguf_.archs.parts import Value
from edgevlm.inputs.spec import ImageSpec
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Linear, Normalize
from edgevlm.models.spec import Attention, Block, Mlp, Norm
from edgevlm.models.towers.vit import Vit
from edgevlm.types import F32

Keys = dict[str, Callable[[ModelSpec, ImageSpec], Value]]
Refusals = dict[str, Callable[[ModelSpec], bool]]  # "its ..." -> whether that is so


@dataclass(frozen=True)
class ProjectorType:
    name: str  # clip.projector_type
    tower: str  # the kind of the vision tower
    steps: tuple[str, ...]  # the kinds of the projector's steps
    gated: bool = False  # layers of gated MLPs and root mean squares; otherwise of two maps and layer norms
    turned: bool = False  # layers have 2-D RoPE
    normed: bool = False  # heads may have norms
    refusals: Refusals = field(default_factory=dict)
    more_keys: Keys = field(default_factory=dict)
    constants: Callable[[ModelSpec], dict[str, F32]] = lambda spec: {}  # what its loader asks for beside our weights
    markers: tuple[
        str, ...
    ] = ()  # texts that llama.cpp looks up as single tokens; it inserts token -1 for a missing one
    line_break: str | None = None  # the tensor with the embedding of the token that it puts between rows
    padding: tuple[int, int, int] | None = None  # the colour around pictures that llama.cpp alone makes square
    sandwich: bool = False  # layers with norms behind parts, of heads and of values, bounds and scores as they are
    other_layers: Callable[[ModelSpec], bool] | None = None  # whether a tower's are others, of a type of its own kinds

    def keys(self, spec: ModelSpec, image: ImageSpec) -> dict[str, Value]:
        made: dict[str, Value] = {
            "general.architecture": "clip",
            "clip.has_vision_encoder": True,
            "clip.projector_type": self.name,
        }
        made |= {f"clip.vision.{key}": value(spec, image) for key, value in _KEYS.items()}
        act = _ACTS[spec.vision.block.mlp.act]
        made |= {act: True} if act else {}
        return made | {f"clip.vision.{key}": value(spec, image) for key, value in self.more_keys.items()}

    def refused(self, spec: ModelSpec) -> list[str]:
        """Why the type cannot compute a model's pictures; empty where it can."""
        other = self.other_layers or (_other_sandwich if self.sandwich else lambda spec: _other_layers(spec, self))
        refusals: Refusals = {"vision tower has other layers than llama.cpp's": other}
        return [reason for reason, holds in {**refusals, **_REFUSALS, **self.refusals}.items() if holds(spec)]


_ACTS = {"gelu_tanh": "clip.use_gelu", "gelu": "clip.use_gelu", "silu": "clip.use_silu", "quick_gelu": None}


def attention(spec: ModelSpec) -> Attention:
    mixer = spec.vision.block.mixers[0]
    assert isinstance(mixer, Attention)
    return mixer


def _normalization(values: tuple[float, ...], image: ImageSpec) -> list[float]:
    unit = image.rescale_factor * 255  # llama.cpp always divides by 255 first
    return [value / unit for value in values]


# A tower without a size of its own has none that matters: 560 is what llama.cpp's converter writes.
_KEYS: Keys = {
    "image_size": lambda spec, image: spec.vision.image_size if isinstance(spec.vision, Vit) else 560,
    "patch_size": lambda spec, image: spec.vision.patch_size,
    "embedding_length": lambda spec, image: spec.vision.hidden_size,
    "feed_forward_length": lambda spec, image: spec.vision.block.mlp.size,
    "block_count": lambda spec, image: spec.vision.num_layers,
    "attention.head_count": lambda spec, image: attention(spec).heads,
    "projection_dim": lambda spec, image: spec.decoder.hidden_size,
    "attention.layer_norm_epsilon": lambda spec, image: spec.vision.block.norm.eps,
    "image_mean": lambda spec, image: _normalization(image.mean, image),
    "image_std": lambda spec, image: _normalization(image.std, image),
}


def _other_layers(spec: ModelSpec, kind: ProjectorType) -> bool:
    a, block = attention(spec), spec.vision.block
    plain = Attention(a.heads, a.heads, a.head_dim, a.bias, a.out_bias, "patches" if kind.turned else None)
    normed = (replace(plain, qk_norm=block.norm),) if kind.normed else (plain,)
    return (
        block.mixers not in ((plain,), normed)
        or bool(getattr(spec.vision, "convolving", ()))
        or block.mlp.gated != kind.gated
        or block.norm.kind != ("rms" if kind.gated else "layer")
        or block.places != "pre"
        or a.heads * a.head_dim != spec.vision.hidden_size
    )


def _other_sandwich(spec: ModelSpec) -> bool:
    a, block = attention(spec), spec.vision.block
    bare = Norm("rms", block.norm.eps, weight=False)
    plain = Attention(
        a.heads, a.heads, a.head_dim, rope="patches", qk_norm=block.norm, scale=1.0, v_norm=bare, clipped=a.clipped
    )
    mlp = Mlp(block.mlp.size, block.mlp.act, clipped=a.clipped)
    return block != Block((plain,), mlp, Norm("rms", block.norm.eps), places="sandwich")


_REFUSALS: Refusals = {
    "vision tower gives further levels of features": lambda spec: (
        isinstance(spec.vision, Vit) and bool(spec.vision.deepstack)
    ),
    "vision tower has an activation that llama.cpp's towers lack": lambda spec: spec.vision.block.mlp.act not in _ACTS,
    "projector has another activation than GELU": lambda spec: any(
        step.act not in ("gelu", "gelu_tanh") for step in spec.projector if isinstance(step, Act)
    ),
}
SWAPPED: Refusals = {
    "vision tower has equal hidden and feed-forward widths, where llama.cpp takes the two feed-forward matrices for "
    "each other": lambda spec: spec.vision.block.mlp.size == spec.vision.hidden_size
}
NO_OTHER_NORM: Refusals = {
    "projector has another norm than llama.cpp's": lambda spec: any(
        step.norm != Norm("layer", 1e-5) for step in spec.projector if isinstance(step, Normalize)
    ),
    "projector has no biases, which llama.cpp's type asks for": lambda spec: any(
        not step.bias for step in spec.projector if isinstance(step, Linear)
    ),
}


def missing_biases(spec: ModelSpec, numbers: tuple[int, int] = (0, 2)) -> dict[str, F32]:
    """Zeros for a projector without biases: llama.cpp adds what the file does not hold. numbers: of its two maps."""
    maps = zip(numbers, (step for step in spec.projector if isinstance(step, Linear)), strict=True)
    return {f"mm.{number}.bias": np.zeros(step.rows, np.float32) for number, step in maps if not step.bias}
