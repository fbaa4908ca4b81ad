"""`--calibrate` as a whole: pictures, bits where they are to be chosen, codes and scales, and what it all lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.export.calibrate import METHODS, SHARES, Calibrated, Progress, calibrate
from edgevlm.export.calibrate_choose import (
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
from edgevlm.export.calibrate_data import Example, read_source
from edgevlm.export.calibrate_pass import Batch, answer_states, divergence, encode_tiles, make_batch
from edgevlm.export.checkpoint import Weights
from edgevlm.export.quantize import F32, LIMITS, quantize
from edgevlm.export.recipe import Recipe, component_of
from edgevlm.image_spec import ImageSpec
from edgevlm.prompt import Prompter
from edgevlm.spec import ModelSpec

DEFAULT_METHOD = "gptq"


@dataclass(frozen=True)
class CalibrationOptions:
    source: str = "default"
    method: str = DEFAULT_METHOD
    budget: int | None = None  # bytes of the largest target with the files that it shares with others
    max_loss: float | None = None  # rise of perplexity on the original's own answers, as a share

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise EdgeVLMError(f"Method '{self.method}' does not exist: choose one of {', '.join(METHODS)}.")
        if self.budget is not None and self.budget <= 0:
            raise EdgeVLMError("The budget should be more than nothing, as in --budget 150MB.")
        if self.max_loss is not None and not 0 < self.max_loss <= 1:
            raise EdgeVLMError("The largest loss should be between 0 and 100 %, as in --max-loss 1%.")


@dataclass(frozen=True)
class Calibration:
    """What an export goes on with; `report` is the manifest's entry."""

    recipe: Recipe
    found: Calibrated
    report: dict[str, Any]


class Mixed:
    """`Weights` with every tensor in the form that `kind` says, from a calibration where that has it."""

    def __init__(self, weights: Weights, kind: Callable[[str], str], found: Calibrated | None = None) -> None:
        self._weights, self._kind, self._found = weights, kind, found

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def read(self, name: str) -> F32:
        kind, found = self._kind(name), self._found
        if found is not None and found.kind(name) == kind:
            return found.fold.undo(name, found.quantized(name).dequantize())
        weight = self._weights.read(name)
        return weight if kind == "fp32" else quantize(weight, kind, name).dequantize()


@dataclass
class Judge:
    """KL between the original and quantized models at every token of the answers to `batch`."""

    spec: ModelSpec
    weights: Weights
    batch: Batch
    _known: tuple[F32, F32] | None = field(default=None, repr=False)

    def __call__(self, quantized: Weights, *, sees: bool = True) -> tuple[float, float]:
        """Mean KL in nats, and the share of tokens with the same first choice. sees: whether the encoder differs."""
        if self._known is None:
            features = encode_tiles(self.spec, self.weights, self.batch.tiles)
            self._known = features, answer_states(self.spec, self.weights, self.batch, features)
        features, states = self._known
        if sees:
            features = encode_tiles(self.spec, quantized, self.batch.tiles)
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
    started = time.process_time()
    source = read_source(options.source)
    seen, unseen = split(source.pictures)
    progress("calibrate: pictures and answers", 0, 2)
    batch = make_batch(spec, weights, image_spec, prompter, seen)
    progress("calibrate: pictures and answers", 1, 2)
    judge = Judge(spec, weights, make_batch(spec, weights, image_spec, prompter, unseen, share=1 / 3))
    progress("calibrate: pictures and answers", 2, 2)
    report: dict[str, Any] = {
        "method": options.method,
        "source": source.name,
        "pictures": len(batch.groups),
        "tokens": len(batch.ids),
        "answer_tokens": len(batch.answers),
        "token_shares": dict(zip(("image", "prompt", "answer"), SHARES, strict=True)),
    }
    if options.budget is not None or options.max_loss is not None:
        recipe, report["choice"] = _choose(
            spec, weights, recipe, options, batch, judge, targets, shared, folder, progress
        )
    recipe = replace(recipe, method=options.method)
    found = calibrate(spec, weights, recipe, batch, options.method, _fresh(folder, "final"), progress)
    report["loss"] = _losses(weights, recipe, found, judge, len(unseen) > 0 and unseen is not seen, progress)
    report["cpu_seconds"] = round(time.process_time() - started, 1)
    return Calibration(recipe, found, report)


def split(pictures: Sequence[Sequence[Example]]) -> tuple[Sequence[Sequence[Example]], Sequence[Sequence[Example]]]:
    """Pictures to calibrate on, and every fourth to measure on; one picture alone has to serve for both."""
    if len(pictures) == 1:
        return pictures, pictures
    apart = {i for i in range(len(pictures)) if i % 4 == 3} or {len(pictures) - 1}
    return [p for i, p in enumerate(pictures) if i not in apart], [pictures[i] for i in sorted(apart)]


def _losses(
    weights: Weights, recipe: Recipe, found: Calibrated, judge: Judge, unseen: bool, progress: Progress
) -> dict[str, Any]:
    def kind(name: str) -> str:
        return recipe.form(name).kind

    sees = recipe.vision.kind in LIMITS or recipe.projector.kind in LIMITS
    progress("calibrate: measure the loss", 0, 2)
    plain = judge(Mixed(weights, kind), sees=sees)
    progress("calibrate: measure the loss", 1, 2)
    ours = judge(Mixed(weights, kind, found), sees=sees)
    progress("calibrate: measure the loss", 2, 2)
    return {
        "pictures": len(judge.batch.groups),
        "unseen": unseen,
        "answer_tokens": len(judge.batch.answers),
        "round_to_nearest": {"kl": plain[0], "top1": plain[1]},
        "calibrated": {"kl": ours[0], "top1": ours[1]},
    }


def _choose(
    spec: ModelSpec, weights: Weights, recipe: Recipe, options: CalibrationOptions, batch: Batch, judge: Judge,
    targets: Sequence[str], shared: int, folder: Path, progress: Progress,
) -> tuple[Recipe, dict[str, Any]]:  # fmt: skip
    """Measure what each component loses in every kind, and each decoder layer in int4; then take the best that fits."""
    recipes = {
        kind: with_choices(recipe, [Choice(c, kind, 0, 0.0) for c in COMPONENTS], weights) for kind in KINDS
    }
    found = calibrate(spec, weights, recipes["int4"], batch, options.method, _fresh(folder, "int4"), progress)
    layers = [f"decoder.layers.{i}" for i in range(spec.decoder.num_layers)]
    steps, done = len(COMPONENTS) * len(KINDS) + len(layers), 0

    def alone(kind: str, part: Callable[[str], bool], sees: bool) -> float:
        nonlocal done
        progress("calibrate: sensitivity", done, steps)
        done += 1
        form = recipes[kind].form
        mixed = Mixed(weights, lambda name: form(name).kind if part(name) else "fp32", found)
        return judge(mixed, sees=sees)[0]

    choices = []
    for c in COMPONENTS:
        sees = c in ("vision", "projector")
        choices.append([
            Choice(c, kind, component_size(spec, weights, recipes[kind], c, targets),
                   alone(kind, lambda name: component_of(name) == c, sees))  # noqa: B023
            for kind in KINDS
        ])  # fmt: skip
    measured = {}
    for layer in layers:
        inside = [name for name in weights.names() if name.startswith(f"{layer}.")]
        more = _layer_size(spec, weights, recipes, inside, targets)
        measured[layer] = more, alone("int4", lambda name: name in inside, False)  # noqa: B023
    progress("calibrate: sensitivity", steps, steps)
    text = choices[COMPONENTS.index("decoder")]
    text += decoder_choices(text[0], text[1], measured)
    rest = other_size(spec, weights, recipe, shared)
    limit = None if options.max_loss is None else _nats(options.max_loss)
    chosen = choose(choices, rest, budget=options.budget, max_loss=limit)
    size, loss = rest + sum(c.size for c in chosen), sum(c.loss for c in chosen)
    asked = [f"at most {options.budget / 1e6:.1f} MB"] if options.budget is not None else []
    asked += [f"a loss of at most {options.max_loss:.2%}"] if options.max_loss is not None else []
    best = "least loss" if options.max_loss is None else "fewest bytes"
    return with_choices(recipe, chosen, weights), {
        "asked": " and ".join(asked),
        "components": table_of(chosen, choices),
        "layers": {name: kl for name, (_, kl) in measured.items()},
        "predicted": {"bytes": size, "kl": loss},
        "why": f"the {best} of {_count(choices)} combinations within {' and '.join(asked)}: "
               f"about {size / 1e6:.1f} MB and {percent(loss)}",
    }  # fmt: skip


def _layer_size(
    spec: ModelSpec, weights: Weights, recipes: dict[str, Recipe], names: Sequence[str], targets: Sequence[str]
) -> int:
    from edgevlm.export.calibrate_choose import tensor_size
    from edgevlm.export.recipe import is_linear

    def size(kind: str, target: str) -> int:
        linear = (name for name in names if is_linear(name))
        return sum(tensor_size(target, n, weights.shape(n), recipes[kind].form(n), spec) for n in linear)

    return max(size("int8", target) - size("int4", target) for target in targets)


def _count(choices: Sequence[Sequence[Choice]]) -> int:
    count = 1
    for offered in choices:
        count *= len(offered)
    return count


def _nats(share: float) -> float:
    import math

    return math.log1p(share)


def _fresh(folder: Path, name: str) -> Path:
    place = folder / name
    place.mkdir()
    return place


