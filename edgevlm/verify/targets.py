"""How each target is judged: on which engine, its stored weights, and what to look at when something departs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from edgevlm.bundle.manifest import Bundle, target_of
from edgevlm.bundle.targets import GgufTarget
from edgevlm.bundle.weights import ShippedWeights
from edgevlm.errors import EdgeVLMError
from edgevlm.models.ops import Weights
from edgevlm.verify.coreml import first_operation, other_contexts
from edgevlm.verify.layers import first_layer
from edgevlm.verify.reference import Reference
from edgevlm.verify.report import Row
from edgevlm.verify.runtime import Case, check_products
from edgevlm.verify.weights import (
    ExpectedWeights,
    GgufValues,
    StoredWeights,
    check_gguf,
    check_stored,
    check_weights,
    gguf_weights,
)

Layers = dict[str, float]  # divergence by named value


@dataclass(frozen=True)
class JudgedTarget:
    """What the gate passes on once it has a target's rows. numerics: by part, what the engine does to activations."""

    bundle: Bundle
    reference: Reference
    case: Case
    numerics: dict[str, str]
    passed: bool
    logits: float  # the bound of cosines of logits


class TargetJudge(Protocol):
    """One target, as the gate sees it."""

    name: str
    module: str | None  # what its engine needs; where it is not installed, the target stays unjudged
    extra: str  # of edgevlm, which installs it

    def engine(self, bundle: Bundle) -> str:
        """The engine, or pair of engines, that judges it."""

    def weights(self, bundle: Bundle) -> Weights | None:
        """The model's weights out of its files, where these hold all of them."""

    def stored(self, bundle: Bundle, names: list[str]) -> StoredWeights:
        """The tensors that the files hold in a recipe's form; of `names`, where the format does not record it."""

    def check_weights(self, bundle: Bundle, expected: ExpectedWeights) -> Row:
        """Do the files hold what the quantizer made of the original?"""

    def before(self, bundle: Bundle, numerics: dict[str, str]) -> Iterator[Row]:
        """What is judged without any model."""

    def after(self, judged: JudgedTarget) -> tuple[list[Row], Layers]:
        """More rows once the engine is judged: graphs that it did not call, or where it first departs."""


class OnnxJudge:
    name, extra = "onnx", "export"
    module: str | None = None

    def engine(self, bundle: Bundle) -> str:
        return "onnxruntime"

    def weights(self, bundle: Bundle) -> Weights:
        return ShippedWeights(bundle)

    def stored(self, bundle: Bundle, names: list[str]) -> StoredWeights:
        return ShippedWeights(bundle)

    def check_weights(self, bundle: Bundle, expected: ExpectedWeights) -> Row:
        return check_weights(ShippedWeights(bundle), expected)

    def before(self, bundle: Bundle, numerics: dict[str, str]) -> Iterator[Row]:
        if set(numerics.values()) != {"float"}:
            yield from check_products()

    def after(self, judged: JudgedTarget) -> tuple[list[Row], Layers]:
        if judged.passed:
            return [], {}
        row, layers = first_layer(judged.bundle, judged.reference, judged.case, judged.numerics)
        return [row], layers


class GgufJudge:
    name, extra = "gguf", "llama"
    module: str | None = "llama_cpp"

    def engine(self, bundle: Bundle) -> str:
        """Where llama.cpp has no form of a tower, ONNX Runtime encodes for it."""
        alone = "onnx" not in bundle.manifest.targets or target_of(bundle, GgufTarget).mmproj is not None
        return "llama.cpp" if alone else "onnxruntime+llama.cpp"

    def weights(self, bundle: Bundle) -> Weights:
        return gguf_weights(bundle)

    def stored(self, bundle: Bundle, names: list[str]) -> StoredWeights:
        return GgufValues(gguf_weights(bundle), names)

    def check_weights(self, bundle: Bundle, expected: ExpectedWeights) -> Row:
        return check_gguf(gguf_weights(bundle), expected)

    def before(self, bundle: Bundle, numerics: dict[str, str]) -> Iterator[Row]:
        yield from ()

    def after(self, judged: JudgedTarget) -> tuple[list[Row], Layers]:
        return [], {}


class CoreMLJudge:
    name, extra = "coreml", "coreml"
    module: str | None = "coremltools"

    def engine(self, bundle: Bundle) -> str:
        return "coreml"

    def weights(self, bundle: Bundle) -> None:
        """Its floats are fp16, whatever the recipe says."""

    def stored(self, bundle: Bundle, names: list[str]) -> StoredWeights:
        from edgevlm.runtimes.mil.weights import CoreMLWeights

        return CoreMLWeights(bundle)

    def check_weights(self, bundle: Bundle, expected: ExpectedWeights) -> Row:
        return check_stored("coreml", self.stored(bundle, []), expected)

    def before(self, bundle: Bundle, numerics: dict[str, str]) -> Iterator[Row]:
        yield from ()

    def after(self, judged: JudgedTarget) -> tuple[list[Row], Layers]:
        bundle, reference, case = judged.bundle, judged.reference, judged.case
        if judged.passed:
            return list(other_contexts(bundle, reference, case, judged.logits)), {}
        return [first_operation(bundle, reference, case)], {}


_ALL: tuple[TargetJudge, ...] = (OnnxJudge(), GgufJudge(), CoreMLJudge())
JUDGES = {judge.name: judge for judge in _ALL}


def engine_of(bundle: Bundle, target: str) -> str:
    """The engine, or pair of engines, that judges a target of the bundle."""
    return JUDGES[target].engine(bundle)


def bundle_weights(bundle: Bundle) -> Weights:
    """The weights of the bundle's own files, by the first target that holds all of them; EdgeVLMError if none does."""
    for name, judge in JUDGES.items():
        weights = judge.weights(bundle) if name in bundle.manifest.targets else None
        if weights is not None:
            return weights
    raise EdgeVLMError(
        f"'{bundle.folder}' does not hold all weights in a form that the reference can read: export it "
        "with --target onnx or gguf, too, or give the original with --model."
    )
