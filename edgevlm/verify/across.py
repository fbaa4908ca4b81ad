"""`edgevlm verify --across`: every engine of a bundle on the same pictures, side by side with the eager reference.

The gate judges each target alone; this shows how far the targets of one bundle are from each other, names the first
component that diverges, and lists what llama.cpp alone, without edgevlm's preprocessing, would do otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.bundle.manifest import Bundle
from edgevlm.bundle.weights import ShippedWeights
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.decode import open_image
from edgevlm.inputs.layout import Layout, merge
from edgevlm.inputs.preprocess import prepare
from edgevlm.inputs.spec import tiled
from edgevlm.runtimes import DEFAULTS, open_runtime
from edgevlm.runtimes.base import Runtime
from edgevlm.runtimes.eager import eager_runtime
from edgevlm.types import F32, I64, U8, Progress
from edgevlm.verify.bounds import bound_of
from edgevlm.verify.gate import PICTURES, QUESTION, picture_folder
from edgevlm.verify.reference import cosine
from edgevlm.verify.report import Bound
from edgevlm.verify.stock import stock_warnings
from edgevlm.verify.targets import bundle_weights, engine_of
from edgevlm.verify.weights import difference, gguf_weights

TOKENS = 32  # of the reference's own greedy answer, on which every engine is judged
TILED = 5  # tiles of the tiled cases
HEAD = ("pair", "case", "features", "first logits", "largest error", "same tokens", "top-1", "first divergence")


@dataclass(frozen=True)
class AcrossRow:
    """Two engines on one prompt. Both read the reference's answer, so that every position has the same history."""

    first: str
    second: str
    case: str
    features: float  # lowest cosine of an image token's features
    logits: float  # cosine of the first token's logits
    logits_error: float  # largest absolute difference of those
    prefix: int  # tokens until the two first choose differently; `tokens` when they never do
    agreement: float  # share of positions with the same choice
    near_ties: int  # different choices between tokens that both engines find nearly equal
    tokens: int
    divergence: str  # "none", or the first component beyond its bound: weights, embeddings, encoder, decoder, tokens


@dataclass(frozen=True)
class AcrossReport:
    rows: tuple[AcrossRow, ...]
    tensors: int  # compared between the ONNX files and the other targets'; 0 where the bundle has no two of them
    different: tuple[str, ...]  # of these, the ones that are not equal bit for bit, as "gguf: decoder.norm.weight"
    warnings: tuple[str, ...]  # what stock llama.cpp would do differently
    skipped: tuple[str, ...]  # why an engine is missing from the table

    @property
    def agreed(self) -> bool:
        return not self.different and all(row.divergence == "none" for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        return {"agreed": self.agreed, **asdict(self)}

    def table(self) -> list[tuple[str, ...]]:
        """Cells under `HEAD`."""
        return [
            (
                f"{row.first} / {row.second}",
                row.case,
                f"{row.features:.6f}",
                f"{row.logits:.6f}",
                f"{row.logits_error:.2g}",
                f"{row.prefix} of {row.tokens}",
                f"{row.agreement:.0%}" + (f", {row.near_ties} tied" if row.near_ties else ""),
                row.divergence,
            )
            for row in self.rows
        ]


def verify_across(
    bundle: Bundle,
    pictures: Sequence[Path] | None = None,
    *,
    tokens: int = TOKENS,
    tiles: int = TILED,
    threads: int | None = None,
    progress: Progress | None = None,
) -> AcrossReport:
    """Compare every engine that the bundle has files for with the reference and with each other.

    pictures: None is the shipped ones; each is asked about as one tile, the first also in up to `tiles` tiles.
    An engine that is not installed is left out and named in `skipped`; EdgeVLMError when none is left.
    """
    if tokens < 1 or tiles < 1:
        raise EdgeVLMError(f"tokens is {tokens} and tiles is {tiles}: both should be 1 or more.")
    paths = [picture_folder() / name for name in PICTURES] if pictures is None else list(pictures)
    if not paths:
        raise EdgeVLMError("There is no picture to compare on: give at least one.")
    cases = _cases(bundle, paths, tiles)
    reference = eager_runtime(bundle, bundle_weights(bundle))
    tensors, different = _compare_weights(bundle)
    runs: dict[str, list[_Run]] = {"eager": []}
    targets = [target for target in bundle.manifest.targets if target in DEFAULTS]
    steps = len(cases) * (len(targets) + 1)
    skipped = []

    def follow(name: str, runtime: Runtime) -> None:
        reference_runs = runs["eager"]
        runs[name] = []
        for i, case in enumerate(cases):
            if progress:
                progress("across", len(cases) * (len(runs) - 1) + i, steps)
            answer = reference_runs[i].choices() if name != "eager" else None
            runs[name].append(_run(runtime, case, answer, tokens))

    follow("eager", reference)
    reference.close()
    for target in targets:
        try:
            runtime = open_runtime(bundle, engine_of(bundle, target), threads=threads)
        except EdgeVLMError as error:
            skipped.append(f"{DEFAULTS[target]}: {error}")
            continue
        try:
            follow(DEFAULTS[target], runtime)
        finally:
            runtime.close()
    if len(runs) == 1:
        raise EdgeVLMError(f"No engine of this bundle can be compared: {' '.join(skipped) or 'it has no targets.'}")
    if progress:
        progress("across", steps, steps)
    engines = list(runs)
    spoiled = {DEFAULTS[name.partition(":")[0]] for name in different}
    bounds = {DEFAULTS[target]: _bound(bundle, target) for target in targets}
    rows = [
        _compare(first, second, case.name, runs[first][i], runs[second][i], bounds, {first, second} & spoiled)
        for j, second in enumerate(engines)
        for first in engines[:j]
        for i, case in enumerate(cases)
    ]
    warnings = [warning for path in paths for warning in stock_warnings(bundle, path)]
    return AcrossReport(tuple(rows), tensors, tuple(different), tuple(warnings), tuple(skipped))


@dataclass(frozen=True)
class _Case:
    name: str
    ids: I64
    layout: Layout
    views: list[U8]


@dataclass(frozen=True)
class _Run:
    embeds: F32
    features: F32
    logits: F32  # (tokens, V)

    def choices(self) -> list[int]:
        return [int(token) for token in self.logits.argmax(-1)]


def _cases(bundle: Bundle, paths: list[Path], tiles: int) -> list[_Case]:
    prompter = bundle.prompter()
    cases = []
    for split, path in [(False, path) for path in paths] + [(True, paths[0])]:
        parts = prepare(open_image(path), tiled(bundle.image_spec), max_tiles=tiles if split else 1)
        count = len(parts.views)
        if split and count == 1:
            continue
        name = f"{path.name}, {count} tile{'s' * (count > 1)}"
        cases.append(_Case(name, *prompter.encode(QUESTION, [parts.tokens]), parts.views))
    return cases


def _compare_weights(bundle: Bundle) -> tuple[int, list[str]]:
    """Against the ONNX files, bit for bit: every tensor of the GGUF files, dequantized, and every quantized matrix of
    the CoreML packages, whose floats are all fp16."""
    count, different = 0, []
    if "onnx" not in bundle.manifest.targets:
        return 0, []
    ours = ShippedWeights(bundle)
    if "gguf" in bundle.manifest.targets:
        theirs = gguf_weights(bundle)
        names = [name for name in ours.names() if theirs.should_hold(name)]
        count += len(names)
        wrong = (n for n in names if n not in theirs or not _same_bits(ours.read(n), theirs.read(n)))
        different += [f"gguf: {name}" for name in wrong]
    if "coreml" in bundle.manifest.targets:
        from edgevlm.runtimes.mil.weights import CoreMLWeights

        stored = CoreMLWeights(bundle)
        names = [name for name in stored.names() if ours.quantized(name).scale is not None]
        count += len(names)
        wrong = (n for n in names if difference(stored.quantized(n), ours.quantized(n)))
        different += [f"coreml: {name}" for name in wrong]
    return count, different


def _same_bits(ours: F32, theirs: F32) -> bool:
    return ours.shape == theirs.shape and np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def _run(runtime: Runtime, case: _Case, answer_ids: list[int] | None, tokens: int) -> _Run:
    """One engine over one prompt and then `answer_ids`; None: over its own greedy answer."""
    decoder = runtime.decoder
    embeds, features = np.array(decoder.embed(case.ids)), runtime.encoder.encode(case.views)
    decoder.rewind(0)
    steps = [decoder.forward(merge(embeds, case.layout, features), case.layout)]
    while len(steps) < tokens:
        token = int(steps[-1].argmax()) if answer_ids is None else answer_ids[len(steps) - 1]
        steps.append(decoder.step(token))
    return _Run(embeds, np.concatenate(features), np.stack(steps))


def _bound(bundle: Bundle, target: str) -> Bound:
    """The gate's bound; any weight in int8 or int4 makes the engine round activations somewhere."""
    forms = [form for form in bundle.manifest.recipe.values() if isinstance(form, dict)]
    return bound_of(target, "int8" if any(form.get("kind") in ("int8", "int4") for form in forms) else "float")


def _compare(
    first: str, second: str, case: str, one: _Run, two: _Run, bounds: dict[str, Bound], spoiled: set[str]
) -> AcrossRow:
    pair = [bounds[name] for name in (first, second) if name in bounds]
    features, logits = cosine(one.features, two.features), cosine(one.logits[0], two.logits[0])
    error = float(np.abs(one.logits[0] - two.logits[0]).max())
    ours, theirs = one.logits.argmax(-1), two.logits.argmax(-1)
    places, other = np.arange(len(ours)), np.flatnonzero(ours != theirs)
    # How far each engine prefers its own choice to the other's; they differ only by noise where one hardly does.
    gaps = np.minimum(
        one.logits[places, ours] - one.logits[places, theirs], two.logits[places, theirs] - two.logits[places, ours]
    )
    # Two engines may each be off by their own bound.
    tied = int((gaps[other] < sum(bound.near_tie for bound in pair)).sum())
    if spoiled:
        divergence = "weights"
    elif np.abs(one.embeds - two.embeds).max() > 1e-3:
        divergence = "embeddings"
    elif features < 1 - sum(1 - bound.features for bound in pair):
        divergence = "encoder"
    elif logits < 1 - sum(1 - bound.logits for bound in pair):
        divergence = "decoder"
    elif tied < len(other):
        divergence = "tokens"
    else:
        divergence = "none"
    count = len(ours)
    prefix, agreement = int(other[0]) if len(other) else count, 1 - len(other) / count
    return AcrossRow(first, second, case, features, logits, error, prefix, agreement, tied, count, divergence)
