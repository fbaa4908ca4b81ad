"""llama.cpp's projector types for towers of any grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgevlm.export.gguf_.archs.projector import (
    NO_OTHER_NORM,
    SWAPPED,
    Keys,
    ProjectorType,
    Refusals,
    attention,
    missing_biases,
)
from edgevlm.inputs.native import Within
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Average, Gated, Linear, Normalize
from edgevlm.models.spec import Mlp, Norm
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.runtimes.llama import names
from edgevlm.types import F32


def _qwen_vit(spec: ModelSpec) -> QwenVit:
    assert isinstance(spec.vision, QwenVit)
    return spec.vision


def _second_frame(spec: ModelSpec) -> dict[str, F32]:
    """Another frame's convolution, which llama.cpp adds for a still picture, where the model has one for all frames."""
    if _qwen_vit(spec).frames > 1:
        return {}
    p = spec.vision.patch_size
    return {"v.patch_embd.weight.1": np.zeros((spec.vision.hidden_size, 3, p, p), np.float32)}


def _frame_and_biases(spec: ModelSpec) -> dict[str, F32]:
    return _second_frame(spec) | missing_biases(spec)


def _turn(staggered: bool) -> Refusals:
    return {
        "vision tower has another RoPE than llama.cpp's": lambda spec: (
            _qwen_vit(spec).theta != 10000.0
            or attention(spec).head_dim % 4 != 0
            or _qwen_vit(spec).staggered != staggered
        )
    }


_FRAMES: Refusals = {"vision tower takes more than two frames at once": lambda spec: _qwen_vit(spec).frames > 2}
_ONE_NORM: Refusals = {
    "vision tower has a norm before its layers, which llama.cpp's type lacks": lambda spec: _qwen_vit(spec).pre_norm
}
_GRID: Refusals = (
    _turn(staggered=False)
    | _ONE_NORM
    | _FRAMES
    | {
        "vision tower makes a token of other than 2 x 2 patches": lambda spec: _qwen_vit(spec).merge != 2,
        "vision tower has no biases on q, k and v, which llama.cpp's type asks for": lambda spec: (
            not attention(spec).bias
        ),
        "vision tower has a norm behind its layers, which llama.cpp's type lacks": lambda spec: (
            _qwen_vit(spec).post_norm
        ),
        "vision tower resamples its table in another way": lambda spec: _qwen_vit(spec).resample != "corners",
        "projector has another norm than its tower": lambda spec: any(
            step.norm != spec.vision.block.norm
            for step in (*spec.projector, *spec.deepstack)
            if isinstance(step, Normalize)
        ),
    }
)
_NO_TABLE: Refusals = {
    "vision tower has a table of positions, a bias of patches or further levels of features, which llama.cpp's type "
    "lacks": lambda spec: bool(_qwen_vit(spec).table or _qwen_vit(spec).patch_bias or spec.deepstack)
}
_MERGED: Keys = {"spatial_merge_size": lambda spec, image: _qwen_vit(spec).merge}
_TABLE: Keys = {"image_size": lambda spec, image: _qwen_vit(spec).table * spec.vision.patch_size}
_AREAS: Keys = {
    "image_min_pixels": lambda spec, image: getattr(image.rule, "least", 1),
    "image_max_pixels": lambda spec, image: getattr(image.rule, "most", 1 << 30),
}
_EDGE: Keys = {"preproc_image_size": lambda spec, image: image.rule.longest if isinstance(image.rule, Within) else 560}


def _other_merger(spec: ModelSpec) -> bool:
    """Whether patches are joined otherwise than by a norm and a map without bias, or not at all."""
    *merged, _, _, _ = spec.projector
    return (
        merged[2:] != [Linear("merger", spec.vision.hidden_size, bias=False)] if merged else _qwen_vit(spec).merge > 1
    )


def _other_merger_norm(spec: ModelSpec) -> bool:
    """llama.cpp takes the tower's epsilon for the projector's norm, too.

    Published models have 1e-5 and 1e-6, which states of layers, with squares around 1 and above, do not tell apart.
    """
    eps = spec.vision.block.norm.eps
    norms = [step.norm for step in spec.projector if isinstance(step, Normalize)]
    return any(norm.kind != "rms" or abs(norm.eps - eps) > 1e-5 for norm in norms)


def _other_gated(spec: ModelSpec) -> bool:
    """Whether a projector is another than two maps, a norm, GELU, and a gated MLP with the tower's activation."""
    last, act = spec.projector[-1], spec.vision.block.mlp.act
    size = last.mlp.size if isinstance(last, Gated) else 0
    kept = [replace(step, rows=0) if isinstance(step, Linear | Gated) else step for step in spec.projector[1:]]
    maps = Linear("linear_1", 0), Linear("linear_2", 0, bias=False)
    return kept != [*maps, Normalize(Norm("layer", 1e-5)), Act("gelu"), Gated(Mlp(size, act), 0)]


def _pattern(vision: QwenVit) -> int:
    """Every how many layers llama.cpp sees the whole picture; 0 where all do: a mask that none reads aborts it."""
    if len(vision.full) == vision.num_layers:
        return 0
    return vision.full[0] + 1 if vision.full else vision.num_layers + 1


def _other_average(spec: ModelSpec) -> bool:
    """Whether the mean is made, normalized and mapped otherwise than as the root of its width times itself."""
    vision, width = _qwen_vit(spec), spec.vision.hidden_size
    norm = Norm("rms", vision.block.norm.eps / width, weight=False)
    maps = Linear("linear", spec.decoder.hidden_size, bias=False)
    return spec.projector != (Average(vision.merge, width), Normalize(norm), maps)


_OWN_SHAPES: Refusals = {
    "views have shapes of their own, and llama.cpp's type stretches one to a square or scales it to an area": (
        lambda spec: True
    )
}
GRIDS = (
    ProjectorType(
        names.AVERAGED, "qwen_vit", ("average", "norm", "linear"), gated=True, turned=True, sandwich=True,
        refusals=SWAPPED | {
            "vision tower has another RoPE than llama.cpp's": lambda spec: (
                _qwen_vit(spec).theta != 100.0 or _qwen_vit(spec).staggered
            ),
            "vision tower is not one without windows, with one table of positions for columns and one for rows": (
                lambda spec: (
                    _qwen_vit(spec).window is not None
                    or _qwen_vit(spec).resample != "none"
                    or not _qwen_vit(spec).table
                    or any((_qwen_vit(spec).pre_norm, _qwen_vit(spec).post_norm, _qwen_vit(spec).patch_bias))
                    or bool(_qwen_vit(spec).convolving or spec.deepstack)
                )
            ),
            "projector makes tokens in another way": _other_average,
        },
        more_keys={
            "projector.scale_factor": lambda spec, image: _qwen_vit(spec).merge,
            # Pixels are brought from 0 to 1 into -1 to 1 by the type itself.
            "image_mean": lambda spec, image: [0.0] * 3,
            "image_std": lambda spec, image: [1.0] * 3,
        },
        markers=("<|image>", "<image|>"),
    ),
    ProjectorType(
        names.GROUP_HALVED, "halved_vit", ("group", "norm", "linear", "act", "linear"), refusals=_OWN_SHAPES
    ),
    *(
        ProjectorType(names.RESAMPLED, "placed_vit", (*before, "resample", "linear"), refusals=_OWN_SHAPES)
        for before in ((), ("linear",))
    ),
    *(
        ProjectorType(
            names.GROUP_SMOOTH, "qwen_vit", ("group", *norm, "linear", "act", "linear"),
            refusals=SWAPPED | NO_OTHER_NORM | {
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
            more_keys=_TABLE | {
                "projector.scale_factor": lambda spec, image: _qwen_vit(spec).merge,
            },
            markers=("<|img_thumbnail|>",),
        )
        for norm in ((), ("norm",))
    ),
    ProjectorType(
        names.GROUP_TURNED, "qwen_vit", ("norm", "group", "linear", "act", "linear"), turned=True,
        refusals=_turn(staggered=False) | _ONE_NORM | NO_OTHER_NORM | {
            "vision tower resamples its table between the centers of rows, where llama.cpp also averages the rows that "
            "a picture of few patches passes over": lambda spec: _qwen_vit(spec).resample != "smooth",
            "vision tower is not one without windows and with a table of positions": lambda spec: (
                _qwen_vit(spec).window is not None or not _qwen_vit(spec).table or bool(spec.deepstack)
            ),
            "vision tower makes a token of other than 2 x 2 patches": lambda spec: _qwen_vit(spec).merge != 2,
        },
        more_keys=_TABLE | _AREAS,
    ),
    ProjectorType(
        names.GROUP_BETWEEN, "qwen_vit", ("norm", "group", "linear", "act", "linear"), gated=True, turned=True,
        refusals=SWAPPED | _turn(staggered=False) | {
            "vision tower is not one of single frames without windows or a table, with a norm behind its layers": (
                lambda spec: (
                    bool(_qwen_vit(spec).window or _qwen_vit(spec).table or spec.deepstack)
                    or _qwen_vit(spec).frames > 1
                    or not _qwen_vit(spec).post_norm
                )
            ),
            "projector has another norm than llama.cpp's": lambda spec: (
                spec.projector[0] != Normalize(Norm("layer", 1e-6))
            ),
        },
        more_keys=_AREAS | {"projector.scale_factor": lambda spec, image: _qwen_vit(spec).merge},
        constants=missing_biases,
    ),
    *(
        ProjectorType(
            name, "qwen_vit", (*merged, "linear", "act", "linear"), gated=True, turned=True,
            refusals=_turn(staggered=True) | {
                "vision tower has windows, a table of positions or a norm behind its layers": lambda spec: (
                    _qwen_vit(spec).window is not None
                    or bool(_qwen_vit(spec).table or _qwen_vit(spec).post_norm or spec.deepstack)
                ),
                "projector has another norm than llama.cpp's": _other_merger_norm,
                "projector joins patches in another way": _other_merger,
            },
            more_keys=_MERGED | more_keys,
            line_break=line_break,
        )
        for merged in ((), ("norm", "group", "linear"))
        for name, more_keys, line_break in (
            (names.BROKEN_ROWS, {}, "v.token_embd.img_break"),
            (names.WHOLE_ROWS, _EDGE, None),
        )
    ),
    ProjectorType(
        names.GROUP_GATED, "qwen_vit", ("group", "linear", "linear", "norm", "act", "gated"), gated=True, turned=True,
        normed=True,
        refusals=SWAPPED | _turn(staggered=False) | _FRAMES | {
            "vision tower makes a token of other than 2 x 2 patches": lambda spec: _qwen_vit(spec).merge != 2,
            "vision tower has windows, further levels of features, or no bias of patches": lambda spec: (
                bool(_qwen_vit(spec).window or spec.deepstack) or not _qwen_vit(spec).patch_bias
            ),
            "vision tower resamples its table otherwise than by a bicubic": lambda spec: (
                _qwen_vit(spec).table > 0 and _qwen_vit(spec).resample != "cubic"
            ),
            "projector has other steps than llama.cpp's": _other_gated,
        },
        more_keys=_MERGED,
        constants=_second_frame,
    ),
    ProjectorType(
        names.GROUP_WHOLE, "qwen_vit", ("norm", "group", "linear", "act", "linear"), turned=True,
        refusals=SWAPPED | _GRID | _NO_TABLE,
        more_keys=_MERGED,
        constants=_frame_and_biases,
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
        | _TABLE
        | {
            "is_deepstack_layers": lambda spec, image: [
                layer in _qwen_vit(spec).deepstack for layer in range(spec.vision.num_layers)
            ],
        },
        constants=_frame_and_biases,
    ),
    ProjectorType(
        names.GROUP_TWO_LINEAR, "qwen_vit", ("norm", "group", "linear", "act", "linear", "take"), gated=True,
        turned=True,
        refusals=SWAPPED | _GRID | _NO_TABLE | {
            "vision tower sees the whole picture in other layers than every n-th": lambda spec: (
                _pattern(_qwen_vit(spec)) > 0
                and _qwen_vit(spec).full
                != tuple(range(_pattern(_qwen_vit(spec)) - 1, spec.vision.num_layers, _pattern(_qwen_vit(spec))))
            ),
            "vision tower has other windows than llama.cpp's of 112 pixels in groups of 2 x 2 patches": lambda spec: (
                _pattern(_qwen_vit(spec)) > 0
                and (_qwen_vit(spec).merge, _qwen_vit(spec).window) != (2, 112 // spec.vision.patch_size // 2 * 2)
            ),
        },
        more_keys=_MERGED | {"n_wa_pattern": lambda spec, image: _pattern(_qwen_vit(spec))},
        constants=_frame_and_biases,
    ),
)  # fmt: skip
