"""llama.cpp's projector types, each with the tower before it: keys, added tensors, and what each cannot compute.

Sources: tools/mtmd/clip.cpp and tools/mtmd/models. All take GELU's tanh form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from edgevlm.export.gguf_.archs.text import Value
from edgevlm.inputs.rules import RatioTiles, TilesThenWhole
from edgevlm.inputs.spec import ImageSpec
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Linear, Normalize, Shuffle, Step
from edgevlm.models.spec import Attention, Norm
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.models.towers.vit import Vit
from edgevlm.runtimes.llama import names
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
    refusals: Refusals = field(default_factory=dict)
    more_keys: Keys = field(default_factory=dict)
    constants: Callable[[ModelSpec], dict[str, F32]] = lambda spec: {}  # what its loader asks for beside our weights
    markers: tuple[
        str, ...
    ] = ()  # texts that llama.cpp looks up as single tokens; it inserts token -1 for a missing one

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

    def refusal(self, spec: ModelSpec) -> str | None:
        """Why the type cannot compute a model's pictures; None where it can."""
        if _other_layers(spec, self.gated, self.turned):
            return "vision tower has other layers than llama.cpp's"
        return next((reason for reason, holds in {**_REFUSALS, **self.refusals}.items() if holds(spec)), None)


def projector_type(spec: ModelSpec) -> ProjectorType | None:
    """The type for a model's tower and projector; None where llama.cpp has none (`why_no_pictures`)."""
    return _of_shape(spec) if why_no_pictures(spec) is None else None


def why_no_pictures(spec: ModelSpec) -> str | None:
    """What keeps llama.cpp from encoding a model's pictures; None where nothing does."""
    found = _of_shape(spec)
    if found is None:
        kinds = " + ".join(step.kind for step in spec.projector)
        return f"it has no projector type for the tower '{spec.vision.kind}' with {kinds}"
    reason = found.refusal(spec)
    return None if reason is None else f"its {reason}"


def _of_shape(spec: ModelSpec) -> ProjectorType | None:
    """The first of that shape that can compute the model; else the first of that shape."""
    shape = spec.vision.kind, tuple(step.kind for step in spec.projector)
    found = [each for each in _TYPES if (each.tower, each.steps) == shape]
    return next((each for each in found if each.refusal(spec) is None), found[0] if found else None)


_ACTS = {"gelu_tanh": "clip.use_gelu", "gelu": "clip.use_gelu", "silu": "clip.use_silu", "quick_gelu": None}


def _attention(spec: ModelSpec) -> Attention:
    mixer = spec.vision.block.mixers[0]
    assert isinstance(mixer, Attention)
    return mixer


def _vit(spec: ModelSpec) -> Vit:
    assert isinstance(spec.vision, Vit)
    return spec.vision


def _qwen_vit(spec: ModelSpec) -> QwenVit:
    assert isinstance(spec.vision, QwenVit)
    return spec.vision


def _steps(spec: ModelSpec, kind: type[Step]) -> list[Step]:
    return [step for step in spec.projector if isinstance(step, kind)]


def _scale(spec: ModelSpec) -> int:
    return next(step.scale for step in spec.projector if isinstance(step, Shuffle))


def _longest_edge(spec: ModelSpec, image: ImageSpec) -> int:
    """The longest edge to which stock llama.cpp scales a picture before it cuts tiles.

    Without the key it cuts one tile per tile size of the raw photo; without splitting, one tile is the nearest it gets.
    """
    rule = image.rule
    if not isinstance(rule, TilesThenWhole) or not rule.split:
        return _vit(spec).image_size
    return min(rule.longest_edge or rule.max_edge, rule.max_edge)


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
    "attention.head_count": lambda spec, image: _attention(spec).heads,
    "projection_dim": lambda spec, image: spec.decoder.hidden_size,
    "attention.layer_norm_epsilon": lambda spec, image: spec.vision.block.norm.eps,
    "image_mean": lambda spec, image: _normalization(image.mean, image),
    "image_std": lambda spec, image: _normalization(image.std, image),
}


def _other_layers(spec: ModelSpec, gated: bool, turned: bool) -> bool:
    a = _attention(spec)
    plain = Attention(a.heads, a.heads, a.head_dim, a.bias, a.out_bias, "patches" if turned else None)
    block = spec.vision.block
    return (
        block.mixers != (plain,)
        or bool(getattr(spec.vision, "convolving", ()))
        or block.mlp.gated != gated
        or block.norm.kind != ("rms" if gated else "layer")
        or block.places != "pre"
        or a.heads * a.head_dim != spec.vision.hidden_size
    )


_REFUSALS: Refusals = {
    "vision tower has an activation that llama.cpp's towers lack": lambda spec: spec.vision.block.mlp.act not in _ACTS,
    "projector has another activation than GELU": lambda spec: any(
        step.act not in ("gelu", "gelu_tanh") for step in spec.projector if isinstance(step, Act)
    ),
}
_SWAPPED: Refusals = {
    "vision tower has equal hidden and feed-forward widths, where llama.cpp takes the two feed-forward matrices for "
    "each other": lambda spec: spec.vision.block.mlp.size == spec.vision.hidden_size
}
_SCALED: Keys = {"projector.scale_factor": lambda spec, image: _scale(spec)}


def _missing_biases(spec: ModelSpec) -> dict[str, F32]:
    """Zeros for a projector without biases: llama.cpp adds what the file does not hold."""
    maps = zip((0, 2), _steps(spec, Linear), strict=True)
    return {
        f"mm.{number}.bias": np.zeros(step.rows, np.float32)
        for number, step in maps
        if isinstance(step, Linear) and not step.bias
    }


def _second_frame(spec: ModelSpec) -> dict[str, F32]:
    """The other frame's convolution, which llama.cpp adds for a still picture: ours is the sum of both already."""
    p = spec.vision.patch_size
    return {"v.patch_embd.weight.1": np.zeros((spec.vision.hidden_size, 3, p, p), np.float32)} | _missing_biases(spec)


_GRID: Refusals = {
    "vision tower makes a token of other than 2 x 2 patches": lambda spec: _qwen_vit(spec).merge != 2,
    "vision tower has another RoPE than llama.cpp's": lambda spec: (
        _qwen_vit(spec).theta != 10000.0 or _attention(spec).head_dim % 4 != 0
    ),
    "vision tower has no biases on q, k and v, which llama.cpp's type asks for": lambda spec: not _attention(spec).bias,
    "vision tower has a norm behind its layers, or resamples its table in another way": lambda spec: (
        _qwen_vit(spec).post_norm or _qwen_vit(spec).resample != "corners"
    ),
    "projector has another norm than its tower": lambda spec: any(
        step.norm != spec.vision.block.norm
        for step in (*spec.projector, *spec.deepstack)
        if isinstance(step, Normalize)
    ),
}
_NO_TABLE: Refusals = {
    "vision tower has a table of positions, a bias of patches or further levels of features, which llama.cpp's type "
    "lacks": lambda spec: bool(_qwen_vit(spec).table or _qwen_vit(spec).patch_bias or spec.deepstack)
}
_NO_OTHER_NORM: Refusals = {
    "projector has another norm than llama.cpp's": lambda spec: any(
        step.norm != Norm("layer", 1e-5) for step in spec.projector if isinstance(step, Normalize)
    ),
    "projector has no biases, which llama.cpp's type asks for": lambda spec: any(
        not step.bias for step in spec.projector if isinstance(step, Linear)
    ),
}
_MERGED: Keys = {"spatial_merge_size": lambda spec, image: _qwen_vit(spec).merge}


def _pattern(vision: QwenVit) -> int:
    """Every how many layers llama.cpp sees the whole picture."""
    return vision.full[0] + 1 if vision.full else vision.num_layers + 1


_TYPES = (
    ProjectorType(
        names.POOLED, "vit", ("pool", "norm", "linear"),
        refusals={
            "projection stands by columns in llama.cpp's type, and a quantized matrix has its blocks along rows": (
                lambda spec: True
            ),
        },
    ),
    ProjectorType(
        names.SHUFFLE_LINEAR, "vit", ("shuffle", "linear"),
        refusals=_SWAPPED | {
            "projector shuffles by 1, and llama.cpp's type needs 2 or more": lambda spec: _scale(spec) < 2,
            "projector has a bias, which llama.cpp's type lacks": lambda spec: any(
                step.bias for step in spec.projector if isinstance(step, Linear)
            ),
            "vision tower has a class token, which llama.cpp's type lacks": lambda spec: _vit(spec).class_token,
        },
        more_keys=_SCALED | {"preproc_image_size": _longest_edge},
        markers=("<fake_token_around_image>", "<global-img>", "\n", "\n\n"),
    ),
    ProjectorType(
        names.TWO_LINEAR, "vit", ("linear", "act", "linear"),
        refusals=_SWAPPED | {
            "vision tower has a class token, which llama.cpp puts behind the patches and then takes for one of "
            "them": lambda spec: _vit(spec).class_token,
        },
        # Without it, llama.cpp leaves out the last layer.
        more_keys={"feature_layer": lambda spec, image: list(_vit(spec).taps or (spec.vision.num_layers,))},
        constants=_missing_biases,
    ),
    ProjectorType(
        names.SHUFFLE_TWO_LINEAR, "vit", ("shuffle", "norm", "linear", "act", "linear"),
        refusals={
            "vision tower has no class token, which llama.cpp's type asks for": lambda spec: not _vit(spec).class_token,
        }
        | _NO_OTHER_NORM,
        more_keys=_SCALED
        | {
            "preproc_min_tiles": lambda spec, image: image.rule.least if isinstance(image.rule, RatioTiles) else 1,
            "preproc_max_tiles": lambda spec, image: image.rule.most if isinstance(image.rule, RatioTiles) else 1,
        },
    ),
    ProjectorType(
        names.GROUP_HALVED, "halved_vit", ("group", "norm", "linear", "act", "linear"),
        refusals={
            "views have shapes of their own, and llama.cpp's type stretches one to a square or scales it to an area": (
                lambda spec: True
            ),
        },
    ),
    *(
        ProjectorType(
            names.GROUP_SMOOTH, "qwen_vit", ("group", *norm, "linear", "act", "linear"),
            refusals=_SWAPPED | _NO_OTHER_NORM | {
                "vision tower is not one without windows, with a norm behind its layers and a smoothly resampled "
                "table of positions": lambda spec: (
                    _qwen_vit(spec).window is not None
                    or _qwen_vit(spec).resample != "smooth"
                    or not (_qwen_vit(spec).table and _qwen_vit(spec).patch_bias and _qwen_vit(spec).post_norm)
                    or bool(spec.deepstack)
                ),
                "vision tower makes a token of one patch, and llama.cpp's type needs 2 x 2 or more": lambda spec: (
                    _qwen_vit(spec).merge < 2
                ),
            },
            more_keys={
                "image_size": lambda spec, image: _qwen_vit(spec).table * spec.vision.patch_size,
                "projector.scale_factor": lambda spec, image: _qwen_vit(spec).merge,
            },
            markers=("<|img_thumbnail|>",),
        )
        for norm in ((), ("norm",))
    ),
    ProjectorType(
        names.GROUP_WHOLE, "qwen_vit", ("norm", "group", "linear", "act", "linear"), turned=True,
        refusals=_SWAPPED | _GRID | _NO_TABLE,
        more_keys=_MERGED,
        constants=_second_frame,
    ),
    ProjectorType(
        names.GROUP_DEEP, "qwen_vit", ("norm", "group", "linear", "act", "linear"), turned=True,
        refusals=_GRID | {
            "vision tower has no table of positions or no bias of patches, which llama.cpp asks for": lambda spec: (
                not (_qwen_vit(spec).table and _qwen_vit(spec).patch_bias)
            ),
            "further levels of features are made otherwise than llama.cpp's": lambda spec: (
                bool(spec.deepstack)
                and [step.kind for step in spec.deepstack] != ["group", "norm", "linear", "act", "linear"]
            ),
        },
        more_keys=_MERGED
        | {
            "image_size": lambda spec, image: _qwen_vit(spec).table * spec.vision.patch_size,
            "is_deepstack_layers": lambda spec, image: [
                layer in _qwen_vit(spec).deepstack for layer in range(spec.vision.num_layers)
            ],
        },
        constants=_second_frame,
    ),
    ProjectorType(
        names.GROUP_TWO_LINEAR, "qwen_vit", ("norm", "group", "linear", "act", "linear", "take"), gated=True,
        turned=True,
        refusals=_SWAPPED | _GRID | _NO_TABLE | {
            "vision tower sees the whole picture in other layers than every n-th": lambda spec: (
                _qwen_vit(spec).full
                != tuple(range(_pattern(_qwen_vit(spec)) - 1, spec.vision.num_layers, _pattern(_qwen_vit(spec))))
            ),
            "vision tower has other windows than llama.cpp's of 112 pixels in groups of 2 x 2 patches": lambda spec: (
                (_qwen_vit(spec).merge, _qwen_vit(spec).window) != (2, 112 // spec.vision.patch_size // 2 * 2)
            ),
        },
        more_keys=_MERGED | {"n_wa_pattern": lambda spec, image: _pattern(_qwen_vit(spec))},
        constants=_second_frame,
    ),
)  # fmt: skip
