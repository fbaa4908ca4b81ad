"""Bits per component and per decoder layer, by the loss and size of each alone: `--budget` and `--max-loss`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgevlm.bundle.qtensor import BLOCK
from edgevlm.checkpoint.checkpoint import Weights
from edgevlm.errors import EdgeVLMError
from edgevlm.export.quantize.recipe import COMPONENTS, Form, Recipe, component_of, fit
from edgevlm.export.targets import TARGETS
from edgevlm.io.console import size
from edgevlm.models.model import ModelSpec

KINDS = ("int4", "int8", "fp16")  # what a component may become


@dataclass(frozen=True)
class Choice:
    """One way to hold a component. `layers` of the decoder keep int8 where the rest is int4."""

    component: str
    kind: str
    size: int  # bytes in the largest target
    loss: float  # KL in nats when only this component is quantized
    layers: tuple[str, ...] = ()

    def describe(self) -> str:
        return f"{self.kind}, {len(self.layers)} layers int8" if self.layers else self.kind


def with_choices(recipe: Recipe, chosen: Iterable[Choice], weights: Weights) -> Recipe:
    """`recipe` with the forms of `chosen`; an int8 encoder is as fast as the preset makes it."""
    for choice in chosen:
        form = Form(choice.kind, choice.kind == "int8" and choice.component == "vision" and recipe.vision.dynamic)
        changed: dict[str, Any] = {choice.component: form}
        if choice.component == "decoder":
            changed["int8"] = choice.layers
        recipe = replace(recipe, **changed)
    return fit(recipe, weights)


def decoder_choices(plain: Choice, better: Choice, layers: dict[str, tuple[int, float]]) -> list[Choice]:
    """`plain` (int4) with ever more layers as in `better` (int8), those first that gain most per byte.

    layers: by prefix, the bytes that int8 takes more than int4, and the KL when that layer alone is int4. The gains of
    several are taken to add up, in proportion to what the whole loses.
    """
    total = sum(loss for _, loss in layers.values())
    order = sorted(layers, key=lambda name: layers[name][1] / layers[name][0], reverse=True)
    out, size, left = [], plain.size, 1.0
    for count, name in enumerate(order[:-1], 1):
        more, loss = layers[name]
        size, left = size + more, left - (loss / total if total > 0 else 0)
        out.append(
            replace(
                plain,
                size=size,
                loss=better.loss + max(0.0, plain.loss - better.loss) * max(0.0, left),
                layers=tuple(order[:count]),
            )
        )
    return out


def choose(
    choices: Sequence[Sequence[Choice]], rest: int, *, budget: int | None = None, max_loss: float | None = None
) -> tuple[Choice, ...]:
    """One choice per component: the least loss within `budget` bytes, or the fewest bytes within `max_loss` nats.

    Losses of components are taken to add up. rest: bytes that no choice changes. Both limits may be given: then the
    fewest bytes within both. EdgeVLMError where nothing fits.
    """
    fits, least, smallest = [], math.inf, math.inf
    for combination in itertools.product(*choices):
        size = rest + sum(choice.size for choice in combination)
        loss = sum(choice.loss for choice in combination)
        smallest = min(smallest, size)
        if budget is None or size <= budget:
            least = min(least, loss)
            if max_loss is None or loss <= max_loss:
                fits.append((size, loss, combination))
    if fits:
        key = (lambda f: (f[1], f[0])) if max_loss is None else (lambda f: (f[0], f[1]))
        return min(fits, key=key)[2]
    if least == math.inf:
        raise too_small(budget or 0, smallest)
    assert max_loss is not None
    within = f" within {_mb(budget)}" if budget is not None else ""
    raise EdgeVLMError(
        f"A loss of at most {percent(max_loss)} cannot be had{within}: the best is {percent(least)}; allow that much."
    )


def check_budget(
    spec: ModelSpec, weights: Weights, recipe: Recipe, targets: Sequence[str], shared: int, budget: int
) -> None:
    """Refuse, from shapes alone, a budget that no choice of bits keeps to; `shared` as in `other_size`."""
    forms = [with_choices(recipe, [Choice(c, kind, 0, 0.0) for c in COMPONENTS], weights) for kind in KINDS]
    least = sum(min(component_size(spec, weights, form, c, targets) for form in forms) for c in COMPONENTS)
    smallest = least + other_size(spec, weights, recipe, shared)
    if smallest > budget:
        raise too_small(budget, smallest)


def too_small(budget: int, smallest: float) -> EdgeVLMError:
    return EdgeVLMError(
        f"The budget of {size(budget)} is too small: this model takes at least {size(round(smallest))}; allow that "
        "much, or take a smaller model."
    )


def percent(kl: float) -> str:
    """A KL divergence in nats as the rise in perplexity of the original's own answers."""
    return f"{math.expm1(kl) * 100:.2f} %"


def component_size(spec: ModelSpec, weights: Weights, recipe: Recipe, component: str, targets: Sequence[str]) -> int:
    """Bytes of a component's linear maps in the target that holds them largest."""
    names = [n for n in weights.names() if weights.is_linear(n) and component_of(n) == component]
    return max(
        sum(TARGETS[target].size_of(n, weights.shape(n), recipe.form(n), spec) for n in names) for target in targets
    )


def other_size(spec: ModelSpec, weights: Weights, recipe: Recipe, shared: int) -> int:
    """Bytes of everything else that a device needs: float tensors, tables, graphs, and `shared` files, rounded up."""
    plain = sum(4 * math.prod(weights.shape(n)) for n in weights.names() if not weights.is_linear(n))
    tables = 4 * spec.decoder.context_length * max((rope.size for rope in spec.decoder.ropes.values()), default=0)
    zeros = max(math.prod(weights.shape(n)) // BLOCK for n in weights.names() if weights.is_linear(n))
    graphs = 26_000 * (spec.decoder.num_layers + spec.vision.num_layers)
    second = 0
    if recipe.prefill is not None:
        names = [n for n in weights.names() if weights.is_linear(n) and component_of(n) == "decoder"]
        second = tables + sum(TARGETS["onnx"].size_of(n, weights.shape(n), recipe.prefill, spec) for n in names)
    return plain + tables + zeros + graphs + second + shared


def table_of(chosen: Sequence[Choice], choices: Sequence[Sequence[Choice]]) -> list[dict[str, Any]]:
    """Rows for the manifest: what was taken, and what each uniform alternative would have cost."""
    rows = []
    for choice, offered in zip(chosen, choices, strict=True):
        rows.append(
            {
                "component": choice.component,
                "chosen": choice.describe(),
                "bytes": choice.size,
                "kl": choice.loss,
                "alternatives": {c.kind: {"bytes": c.size, "kl": c.loss} for c in offered if not c.layers},
            }
        )
    return rows


def _mb(count: float) -> str:
    return f"{count / 1e6:.1f} MB"


__all__ = ["COMPONENTS", "KINDS", "Choice", "choose", "decoder_choices", "percent", "table_of", "with_choices"]
