"""What a checkpoint is, and what can be made of it: from its small files and the headers of its weights alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from edgevlm.bundle.region import region_bytes
from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import find_family, read_image_spec, read_model, read_prompt_spec
from edgevlm.checkpoint.families.tensors import MappedWeights
from edgevlm.checkpoint.upstream import upstream_files
from edgevlm.errors import EdgeVLMError
from edgevlm.export.calibrate.choose import component_size, other_size
from edgevlm.export.coreml_.options import PROFILES, CoreMLOptions
from edgevlm.export.quantize.recipe import COMPONENTS, Recipe, component_of, fit, make_recipe
from edgevlm.export.targets import TARGETS
from edgevlm.inputs.preprocess import plan
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io.records import to_dict
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import Decoder
from edgevlm.models.work import Work, encoding, reading, together

KINDS = ("fp16", "int8", "int4")
PICTURE = (640, 480)  # of which stages and image tokens are told


@dataclass(frozen=True)
class Holding:
    """What one target makes of the model. refusal: why it cannot hold it; then there are no sizes.

    no_pictures: why another engine encodes pictures, where it does. sizes: estimated bytes by quantization, of those
    that the target takes. profiles: the same of a target's other profiles.
    """

    refusal: str | None = None
    no_pictures: str | None = None
    sizes: dict[str, int] | None = None
    profiles: dict[str, Holding] | None = None


@dataclass(frozen=True)
class Stage:
    """What a stage takes for a picture of `PICTURE` pixels. weights: bytes that ONNX reads, by quantization."""

    work: Work
    weights: dict[str, int]


@dataclass(frozen=True)
class Survey:
    """image, stages: nothing where the processor's files are refused; `problems` has the sentences."""

    spec: ModelSpec
    title: str  # of the family
    parts: dict[str, str]  # tower, projector and decoder, in words
    parameters: dict[str, int]
    stored: dict[str, int]  # bytes by type
    image: ImageSpec | None
    problems: tuple[str, ...]
    targets: dict[str, Holding]
    stages: dict[str, Stage]  # "encode" the picture, "prefill" its image tokens, "decode" one more

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.spec.name,
            "family": self.spec.family,
            "title": self.title,
            "parts": self.parts,
            "parameters": self.parameters,
            "stored": self.stored,
            "spec": to_dict(self.spec),
            "problems": list(self.problems),
            "targets": {name: to_dict(holding) for name, holding in self.targets.items()},
            "stages": {
                name: {"operations": stage.work.operations, "weights": stage.weights, "kept": 4 * stage.work.kept}
                for name, stage in self.stages.items()
            },
        }


def survey(checkpoint: Checkpoint) -> Survey:
    """Raises EdgeVLMError for a model that edgevlm does not know, with what `edgevlm export` would say."""
    spec, weights = read_model(checkpoint)
    problems: list[str] = []
    image = None
    try:
        image = read_image_spec(checkpoint.processor, spec)
        read_prompt_spec(checkpoint.processor, spec)
    except EdgeVLMError as error:
        problems.append(str(error))
    return Survey(
        spec,
        find_family(checkpoint.config, checkpoint.name).title,
        describe_parts(spec),
        _parameters(checkpoint, weights),
        checkpoint.stored_bytes(),
        image,
        tuple(problems),
        {target: _holding(target, checkpoint, spec, weights) for target in TARGETS},
        _stages(spec, image, weights) if image else {},
    )


def _stages(spec: ModelSpec, image: ImageSpec, weights: MappedWeights) -> dict[str, Stage]:
    views = plan(*PICTURE, image)
    tokens = sum(view.rows * view.cols for view in image.view_tokens(views, PICTURE))
    sizes = {view.size: encoding(spec, view.size[1], view.size[0]) for view in views}
    works = {
        "encode": together(sizes[view.size] for view in views),
        "prefill": reading(spec, tokens),
        "decode": reading(spec, 1, tokens),
    }
    recipes = {kind: fit(make_recipe(kind), weights) for kind in KINDS}
    onnx = TARGETS["onnx"]

    def read(work: Work, recipe: Recipe) -> int:
        linear = [name for name in work.read if weights.is_linear(name)]
        plain = sum(4 * count for name, count in work.read.items() if name not in linear)
        return plain + sum(onnx.size_of(name, weights.shape(name), recipe.form(name), spec) for name in linear)

    return {
        name: Stage(work, {kind: read(work, recipe) for kind, recipe in recipes.items()})
        for name, work in works.items()
    }


def _parameters(checkpoint: Checkpoint, weights: MappedWeights) -> dict[str, int]:
    """By component, of the tensors that the model is read from, as they are stored."""
    found, counted = dict.fromkeys(COMPONENTS, 0), set[str]()
    for name in weights.names():
        for stored in set(weights.stored_names(name)) - counted:
            found[component_of(name)] += math.prod(checkpoint.shape(stored))
            counted.add(stored)
    return found


def _holding(target: str, checkpoint: Checkpoint, spec: ModelSpec, weights: MappedWeights) -> Holding:
    found = _held(target, CoreMLOptions(), checkpoint, spec, weights)
    if target != "coreml":
        return found
    unit = spec.vision.patch_size * getattr(spec.vision, "merge", 1)
    others = [name for name in PROFILES if name != CoreMLOptions().profile]
    fixed = {name: CoreMLOptions(name, image_side=max(1, 448 // unit) * unit) for name in others}
    return replace(
        found, profiles={name: _held(target, made, checkpoint, spec, weights) for name, made in fixed.items()}
    )


def _held(
    target: str, coreml: CoreMLOptions, checkpoint: Checkpoint, spec: ModelSpec, weights: MappedWeights
) -> Holding:
    try:
        why = TARGETS[target].check_model(spec, checkpoint.processor / "tokenizer.json", coreml)
    except EdgeVLMError as error:
        return Holding(str(error))
    shared = sum(path.stat().st_size for path in upstream_files(checkpoint.folder, checkpoint.processor))
    sizes = {}
    for kind in KINDS:
        recipe = fit(make_recipe(kind), weights)
        try:
            TARGETS[target].check(recipe, coreml)
        except EdgeVLMError:
            continue
        linear = sum(component_size(spec, weights, recipe, component, (target,)) for component in COMPONENTS)
        sizes[kind] = linear + other_size(spec, weights, recipe, shared + region_bytes(spec, kind))
    return Holding(None, why, sizes)


def describe_parts(spec: ModelSpec) -> dict[str, str]:
    """The tower, the projector and the decoder, each by kind and size."""
    tower, d = spec.vision, spec.decoder
    side = getattr(tower, "image_size", None)
    pictures = f"pictures of {side} x {side} px" if side else "pictures of any size"
    return {
        "tower": f"{tower.kind}: {tower.num_layers} layers of {tower.hidden_size}, {pictures}",
        "projector": " + ".join(step.kind for step in spec.projector),
        "decoder": f"{_mixers(d)}: {d.num_layers} layers of {d.hidden_size}, {d.vocab_size} tokens, "
        f"context {d.context_length}",
    }


def _mixers(d: Decoder) -> str:
    """The kinds of a decoder's mixers, in words."""
    found = []
    for mixer in (mixer for block in d.blocks for mixer in block.mixers):
        window = getattr(mixer, "window", None)
        found.append(mixer.kind.replace("_", " ") + (f" to {window} positions" if window is not None else ""))
    return " and ".join(dict.fromkeys(found))
