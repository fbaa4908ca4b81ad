"""`--calibrate` in order: read pictures, choose bits where asked to, fit codes and scales, measure the loss."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgevlm.checkpoint.checkpoint import Weights
from edgevlm.errors import EdgeVLMError
from edgevlm.export.calibrate.batch import Batch
from edgevlm.export.calibrate.choose import (
    COMPONENTS,
    KINDS,
    Choice,
    choose,
    component_size,
    decoder_choices,
    other_size,
    percent,
    table_of,
    with_choices,
)
from edgevlm.export.calibrate.data import Example, read_source
from edgevlm.export.calibrate.make import make_batch
from edgevlm.export.calibrate.play import answer_states, divergence, encode_batch
from edgevlm.export.calibrate.solve import METHODS, SHARES, CalibratedStore, calibrate
from edgevlm.export.quantize.recipe import Recipe, component_of
from edgevlm.export.quantize.round import LIMITS, quantize
from edgevlm.export.targets import TARGETS
from edgevlm.inputs.prompt import Prompter
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io.options import check_types
from edgevlm.models import ops
from edgevlm.models.model import ModelSpec
from edgevlm.types import F32, Progress

DEFAULT_METHOD = "gptq"
_ATTEMPTS = 4  # at a choice whose measured loss keeps to --max-loss


@dataclass(frozen=True)
class CalibrationOptions:
    source: str = "default"
    method: str = DEFAULT_METHOD
    budget: int | None = None  # bytes of the largest target with the files that it shares with others
    max_loss: float | None = None  # rise of perplexity on the original's own answers, as a share

    def __post_init__(self) -> None:
        check_types(self)
        if self.method not in METHODS:
            raise EdgeVLMError(f"Method '{self.method}' does not exist: choose one of {', '.join(METHODS)}.")
        if self.budget is not None and self.budget <= 0:
            raise EdgeVLMError(f"The budget is {self.budget} bytes: give more than 0, as in --budget 150MB.")
        if self.max_loss is not None and not 0 < self.max_loss <= 1:
            raise EdgeVLMError(
                f"The largest loss is {self.max_loss:.4g}: give a share above 0 and at most 1, as in --max-loss 1%."
            )


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration; `report` is the manifest's entry."""

    recipe: Recipe
    found: CalibratedStore
    report: dict[str, Any]


class MixedWeights:
    """`Weights` with every matrix in the form `kind(name)`, from a calibration where that has it."""

    def __init__(self, weights: Weights, kind: Callable[[str], str], found: CalibratedStore | None = None) -> None:
        self._weights, self._kind, self._found = weights, kind, found

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def read(self, name: str) -> F32:
        kind, found = self._kind(name) if self._weights.is_linear(name) else "fp32", self._found
        if found is not None and found.kind(name) == kind:
            return found.fold.undo(name, found.quantized(name).dequantize())
        weight = self._weights.read(name)
        return weight if kind == "fp32" else quantize(weight, kind, name).dequantize()


@dataclass
class LossMeter:
    """KL between the original and quantized models at every token of the answers to `batch`."""

    spec: ModelSpec
    weights: Weights
    batch: Batch
    _known: tuple[F32, F32] | None = field(default=None, repr=False)

    def __call__(self, quantized: ops.Weights, *, sees: bool = True) -> tuple[float, float]:
        """Mean KL in nats, and the share of tokens with the same first choice. sees: whether the encoder differs."""
        if self._known is None:
            features = encode_batch(self.spec, self.weights, self.batch)
            self._known = features, answer_states(self.spec, self.weights, self.batch, features)
        features, states = self._known
        if sees:
            features = encode_batch(self.spec, quantized, self.batch)
        theirs = answer_states(self.spec, quantized, self.batch, features)
        kl, same = divergence(self.spec, self.weights, quantized, (states, theirs))
        return max(0.0, float(kl.mean(dtype="float64"))), float(same.mean())


def run(
    spec: ModelSpec,
    weights: Weights,
    recipe: Recipe,
    options: CalibrationOptions,
    image_spec: ImageSpec,
    prompter: Prompter,
    targets: Sequence[str],
    shared: int,
    folder: Path,
    progress: Progress,
) -> Calibration:
    """Calibrate `recipe`, or the one that the limits of `options` lead to. `folder`, a temporary one, keeps results.

    shared: bytes of the files that every target needs beside its own.
    """
    free = options.budget is None and options.max_loss is None
    if free and not any(weights.is_linear(name) and recipe.form(name).kind in LIMITS for name in weights.names()):
        raise EdgeVLMError(
            f"--calibrate fits int4 and int8 weights, and {recipe.quantize} leaves none: add --quantize int4, or leave "
            "--calibrate out."
        )
    started = time.process_time()
    source = read_source(options.source)
    seen, unseen = split(source.pictures)
    progress("calibrate: pictures and answers", 0, 2)
    batch = make_batch(spec, weights, image_spec, prompter, seen)
    progress("calibrate: pictures and answers", 1, 2)
    judge = LossMeter(spec, weights, make_batch(spec, weights, image_spec, prompter, unseen, share=1 / 3))
    progress("calibrate: pictures and answers", 2, 2)
    report: dict[str, Any] = {
        "method": options.method,
        "source": source.name,
        "pictures": len(batch.groups),
        "tokens": len(batch.ids),
        "answer_tokens": len(batch.answers),
        "token_shares": dict(zip(("image", "prompt", "answer"), SHARES, strict=True)),
    }
    recipe = replace(recipe, method=options.method)
    if free:
        found = calibrate(spec, weights, recipe, batch, options.method, _fresh(folder, "final"), progress)
        measured = judge(_mixed(weights, recipe, found), sees=_sees(recipe))
    else:
        choices, layers = _sensitivity(spec, weights, recipe, options, batch, judge, targets, folder, progress)
        rest = other_size(spec, weights, recipe, shared)
        max_kl = None if options.max_loss is None else math.log1p(options.max_loss)
        limit = max_kl
        for attempt in range(_ATTEMPTS):
            chosen = choose(choices, rest, budget=options.budget, max_loss=limit)
            recipe = with_choices(recipe, chosen, weights)
            place = _fresh(folder, f"final{attempt}")
            found = calibrate(spec, weights, recipe, batch, options.method, place, progress)
            measured = judge(_mixed(weights, recipe, found), sees=_sees(recipe))
            if max_kl is None or measured[0] <= max_kl:
                break
            shutil.rmtree(place)
            assert limit is not None
            limit *= 0.8 * min(1.0, max_kl / measured[0])  # together they lost more than the sum of each alone
        else:
            assert max_kl is not None
            raise EdgeVLMError(
                f"A loss of at most {percent(max_kl)} was not reached: the last of {_ATTEMPTS} choices came to "
                f"{percent(measured[0])} on pictures that were not calibrated on; allow more, or a larger budget."
            )
        report["choice"] = _explain(options, choices, chosen, layers, rest)
    plain = judge(_mixed(weights, recipe, None), sees=_sees(recipe))
    report["loss"] = {
        "pictures": len(judge.batch.groups),
        "unseen": unseen is not seen,
        "answer_tokens": len(judge.batch.answers),
        "round_to_nearest": {"kl": plain[0], "top1": plain[1]},
        "calibrated": {"kl": measured[0], "top1": measured[1]},
    }
    report["cpu_seconds"] = round(time.process_time() - started, 1)
    return Calibration(recipe, found, report)


def split(pictures: Sequence[Sequence[Example]]) -> tuple[Sequence[Sequence[Example]], Sequence[Sequence[Example]]]:
    """Pictures to calibrate on, and every fourth to measure on; one picture alone has to serve for both."""
    if len(pictures) == 1:
        return pictures, pictures
    apart = {i for i in range(len(pictures)) if i % 4 == 3} or {len(pictures) - 1}
    return [p for i, p in enumerate(pictures) if i not in apart], [pictures[i] for i in sorted(apart)]


def _mixed(weights: Weights, recipe: Recipe, found: CalibratedStore | None) -> MixedWeights:
    return MixedWeights(weights, lambda name: recipe.form(name).kind, found)


def _sees(recipe: Recipe) -> bool:
    return recipe.vision.kind != "fp32" or recipe.projector.kind != "fp32"


def _sensitivity(
    spec: ModelSpec,
    weights: Weights,
    recipe: Recipe,
    options: CalibrationOptions,
    batch: Batch,
    judge: LossMeter,
    targets: Sequence[str],
    folder: Path,
    progress: Progress,
) -> tuple[list[list[Choice]], dict[str, float]]:
    """Loss and size of each component in every kind, and loss of each decoder layer in int4, all else float."""
    recipes = {kind: with_choices(recipe, [Choice(c, kind, 0, 0.0) for c in COMPONENTS], weights) for kind in KINDS}
    place = _fresh(folder, "int4")
    found = calibrate(spec, weights, recipes["int4"], batch, options.method, place, progress)
    layers = [f"decoder.layers.{i}." for i in range(spec.decoder.num_layers)]
    steps, done = len(COMPONENTS) * len(KINDS) + len(layers), 0

    def alone(kind: str, part: Callable[[str], bool], sees: bool) -> float:
        nonlocal done
        progress("calibrate: sensitivity", done, steps)
        done += 1
        form = recipes[kind].form
        mixed = MixedWeights(weights, lambda name: form(name).kind if part(name) else "fp32", found)
        return judge(mixed, sees=sees)[0]

    choices = []
    for c in COMPONENTS:
        inside, sees = partial(_belongs, c), c in ("vision", "projector")
        sizes = {kind: component_size(spec, weights, recipes[kind], c, targets) for kind in KINDS}
        choices.append([Choice(c, kind, sizes[kind], alone(kind, inside, sees)) for kind in KINDS])
    losses = {layer: alone("int4", partial(_starts, layer), False) for layer in layers}
    progress("calibrate: sensitivity", steps, steps)
    more = {layer: _more(spec, weights, recipes, layer, targets) for layer in layers}
    text = choices[COMPONENTS.index("decoder")]
    by_layer = {layer.rstrip("."): (more[layer], losses[layer]) for layer in layers}
    text += decoder_choices(text[0], text[1], by_layer)
    shutil.rmtree(place)
    return choices, {layer: loss for layer, (_, loss) in by_layer.items()}


def _belongs(component: str, name: str) -> bool:
    return component_of(name) == component


def _starts(layer: str, name: str) -> bool:
    return name.startswith(layer)


def _more(spec: ModelSpec, weights: Weights, recipes: dict[str, Recipe], layer: str, targets: Sequence[str]) -> int:
    """Bytes that a decoder layer takes more in int8 than in int4."""
    linear = [name for name in weights.names() if name.startswith(layer) and weights.is_linear(name)]

    def size(kind: str, target: str) -> int:
        return sum(TARGETS[target].size_of(n, weights.shape(n), recipes[kind].form(n), spec) for n in linear)

    return max(size("int8", target) - size("int4", target) for target in targets)


def _explain(
    options: CalibrationOptions,
    choices: list[list[Choice]],
    chosen: Sequence[Choice],
    layers: dict[str, float],
    rest: int,
) -> dict[str, Any]:
    size, loss = rest + sum(c.size for c in chosen), sum(c.loss for c in chosen)
    limits = [f"at most {options.budget / 1e6:.1f} MB"] if options.budget is not None else []
    limits += [f"a loss of at most {options.max_loss:.2%}"] if options.max_loss is not None else []
    best = "least loss" if options.max_loss is None else "fewest bytes"
    count = math.prod(len(offered) for offered in choices)
    return {
        "asked": " and ".join(limits),
        "components": table_of(chosen, choices),
        "layers": layers,
        "predicted": {"bytes": size, "kl": loss},
        "why": f"the {best} of {count} combinations within {' and '.join(limits)}: about {size / 1e6:.1f} MB, and "
        f"{percent(loss)} if losses add up",
    }


def _fresh(folder: Path, name: str) -> Path:
    place = folder / name
    place.mkdir()
    return place
