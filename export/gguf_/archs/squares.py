"""llama.cpp's projector types for towers of square pictures."""

from __future__ import annotations

from edgevlm.export.gguf_.archs.projector import (
    NO_OTHER_NORM,
    SWAPPED,
    Keys,
    ProjectorType,
    Refusals,
    missing_biases,
)
from edgevlm.inputs.rules import RatioTiles, TilesThenWhole
from edgevlm.inputs.spec import ImageSpec
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Linear, Normalize, Pool, Shuffle
from edgevlm.models.towers.vit import Vit
from edgevlm.runtimes.llama import names


def _vit(spec: ModelSpec) -> Vit:
    assert isinstance(spec.vision, Vit)
    return spec.vision


def _scale(spec: ModelSpec) -> int:
    return next(step.scale for step in spec.projector if isinstance(step, Shuffle | Pool))


def _longest_edge(spec: ModelSpec, image: ImageSpec) -> int:
    """The longest edge to which stock llama.cpp scales a picture before it cuts tiles.

    Without the key it cuts one tile per tile size of the raw photo; without splitting, one tile is the nearest it gets.
    """
    rule = image.rule
    if not isinstance(rule, TilesThenWhole) or not rule.split:
        return _vit(spec).image_size
    return min(rule.longest_edge or rule.max_edge, rule.max_edge)


_SCALED: Keys = {"projector.scale_factor": lambda spec, image: _scale(spec)}
_NO_CLASS: Refusals = {
    "vision tower has a class token, which llama.cpp's type lacks": lambda spec: _vit(spec).class_token
}

_TANH = {"gelu": "gelu_tanh"}  # one of both is all that llama.cpp has

SQUARE = (
    ProjectorType(
        names.WINDOW_QUERIES, "vit", ("window_queries",),
        refusals={
            "projector is of a type that in llama.cpp cuts and resamples pictures itself, and encodes no view that "
            "another has cut": lambda spec: True,
        },
    ),
    ProjectorType(
        names.POOLED, "vit", ("pool", "norm", "linear"),
        refusals=SWAPPED | _NO_CLASS | {
            "projector has another norm than its tower's epsilon in root mean squares": lambda spec: any(
                (step.norm.kind, step.norm.eps) != ("rms", spec.vision.block.norm.eps)
                for step in spec.projector
                if isinstance(step, Normalize)
            ),
            "projector has a bias, which llama.cpp's type lacks": lambda spec: any(
                step.bias for step in spec.projector if isinstance(step, Linear)
            ),
        },
        more_keys=_SCALED,
    ),
    ProjectorType(
        names.SHUFFLE_LINEAR, "vit", ("shuffle", "linear"),
        refusals=SWAPPED | _NO_CLASS | {
            "projector shuffles by 1, and llama.cpp's type needs 2 or more": lambda spec: _scale(spec) < 2,
            "projector has a bias, which llama.cpp's type lacks": lambda spec: any(
                step.bias for step in spec.projector if isinstance(step, Linear)
            ),
        },
        more_keys=_SCALED | {"preproc_image_size": _longest_edge},
        markers=("<fake_token_around_image>", "<global-img>", "\n", "\n\n"),
    ),
    ProjectorType(
        names.TWO_LINEAR, "vit", ("linear", "act", "linear"),
        refusals=SWAPPED | {
            "vision tower has a class token, which llama.cpp puts behind the patches and then takes for one of "
            "them": lambda spec: _vit(spec).class_token,
        },
        # Without it, llama.cpp leaves out the last layer.
        more_keys={"feature_layer": lambda spec, image: list(_vit(spec).taps or (spec.vision.num_layers,))},
        constants=missing_biases,
        padding=(122, 116, 104),
    ),
    ProjectorType(
        names.TWO_LINEAR_GREY, "vit", ("linear", "act", "linear"),
        refusals=_NO_CLASS | {
            "projector takes the states of other layers than the last": lambda spec: _vit(spec).taps != (),
            "projector has another activation than its tower": lambda spec: any(
                _TANH.get(step.act, step.act) != _TANH.get(spec.vision.block.mlp.act, spec.vision.block.mlp.act)
                for step in spec.projector
                if isinstance(step, Act)
            ),
        },
        constants=lambda spec: missing_biases(spec, numbers=(0, 1)),
        padding=(127, 127, 127),
    ),
    ProjectorType(
        names.SHUFFLE_TWO_LINEAR, "vit", ("shuffle", "norm", "linear", "act", "linear"),
        refusals={
            "vision tower has no class token, which llama.cpp's type asks for": lambda spec: not _vit(spec).class_token,
        }
        | NO_OTHER_NORM,
        more_keys=_SCALED
        | {
            "preproc_min_tiles": lambda spec, image: image.rule.least if isinstance(image.rule, RatioTiles) else 1,
            "preproc_max_tiles": lambda spec, image: image.rule.most if isinstance(image.rule, RatioTiles) else 1,
        },
    ),
)  # fmt: skip
