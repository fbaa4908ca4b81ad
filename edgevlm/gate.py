"""The gate: every artifact against the eager reference, component by component and token by token.

The reference computes in float32 on the very weights that ship, so that a bound judges the graph and the engine.
What quantization itself costs is measured apart, against the original weights.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgevlm.bundle import Bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.gate_report import GateReport, Row
from edgevlm.models.ops import F32, Weights
from edgevlm.preprocess import Tiles, open_image, preprocess
from edgevlm.prompt import Prompter
from edgevlm.qtensor import PREFILL, QTensor
from edgevlm.reference import Reference, cosine, tile_key
from edgevlm.runtimes import DEFAULTS, open_runtime
from edgevlm.runtimes.base import Runtime
from edgevlm.shipped import ShippedWeights
from edgevlm.spec import VisionSpec

Progress = Callable[[str, int, int], None]
PICTURES = ("coffee.jpg", "scene-shapes.png")
QUESTION = "What is in the picture?"
TOKENS = 64  # greedy tokens per prompt
TILE_COUNTS = (1, 2, 13)


@dataclass(frozen=True)
class Bound:
    """What a runtime may differ from the reference by."""

    features: float  # least cosine of an image token's features
    logits: float  # least cosine of logits
    near_tie: float  # a token other than the reference's is excused below this gap between the two logits


# By target and by what the engine does to activations. DESIGN section 7 has the float bounds; engines that round
# activations to int8 are held to the cosine published for int8, and to half a nat between two tokens.
BOUNDS = {
    ("onnx", "float"): Bound(0.99999, 0.99999, 1e-3),
    ("onnx", "int8"): Bound(0.999, 0.998, 0.5),
    ("onnx", "dynamic"): Bound(0.999, 0.99, 1.0),  # one range for a whole prompt, which outliers stretch
    ("gguf", "float"): Bound(0.9999, 0.9999, 2e-2),  # fp16 GELU table, fp16 KV cache
    ("gguf", "int8"): Bound(0.999, 0.998, 0.5),
    ("coreml", "float"): Bound(0.9999, 0.999, 5e-2),  # fp16 storage after every operation
    ("coreml", "int8"): Bound(0.9999, 0.999, 5e-2),  # weights only: activations stay fp16
}
# Least cosine between the original's and the quantized model's (features, logits); int4 is judged by answers.
LOSS_BOUNDS = {"fp32": (0.99999, 0.99999), "fp16": (0.9999, 0.9999), "int8": (0.999, 0.99), "int4": (None, None)}
ENGINES = DEFAULTS
# An engine that is not installed leaves its target unjudged, and the table says so: (module, extra).
OPTIONAL = {"gguf": ("llama_cpp", "llama"), "coreml": ("coremltools", "coreml")}


def bound_of(target: str, numerics: str) -> Bound:
    """The bound of a target; an engine without a form of its own for dynamic int8 is held to that of int8."""
    return BOUNDS.get((target, numerics)) or BOUNDS[target, "int8"]


class Expected(Weights, Protocol):
    """The quantizer's own result for the original weights."""

    def names(self) -> list[str]: ...
    def quantized(self, name: str) -> QTensor: ...


@dataclass(frozen=True)
class Case:
    """A prompt with its tiles."""

    name: str
    ids: np.ndarray[Any, np.dtype[np.int64]]
    tiles: F32  # (T, 3, S, S)


def run_gate(
    bundle: Bundle,
    *,
    original: Weights | None = None,
    expected: Expected | None = None,
    progress: Progress | None = None,
    thorough: bool = True,
) -> GateReport:
    """Compare every target of `bundle` with the reference.

    original: the checkpoint's weights, to measure what quantization costs. expected: what the quantizer makes of
    them, to hold the files to. Without either (a bundle alone) these two parts are left out.
    thorough: for large encoders too, run several tiles in one call and the graphs of standard operators, which take
    over a gigabyte and most of the time; without it the report says that they were not judged.
    """
    rows: list[Row] = []
    targets = list(bundle.manifest.targets)
    stages = ["weights"] + targets + ["onnx portable"] * ("onnx" in targets) + ["loss"]

    def tell(stage: str) -> None:
        if progress:
            progress("gate", stages.index(stage), len(stages))

    tell("weights")
    shipped: Weights
    if "onnx" in targets:
        shipped = ShippedWeights(bundle)
        if expected is not None:
            rows.append(_check_weights(shipped, expected))
    elif expected is not None:
        shipped = expected
    elif "gguf" in targets:
        shipped = gguf_weights(bundle)
    else:
        raise EdgeVLMError(f"'{bundle.folder}' holds no weights to judge by: add --model with the original.")
    if "gguf" in targets and expected is not None:
        rows.append(_check_gguf(gguf_weights(bundle), expected))
    spec = bundle.manifest.spec
    reference = Reference(spec, shipped)
    fast = bundle.manifest.recipe.get("prefill") is not None and "onnx" in targets
    prompt = Reference(spec, shipped, ShippedWeights(bundle, prompt=True)) if fast else reference
    cases = _cases(bundle)
    answers: list[int] = []
    for target in targets:
        tell(target)
        module, extra = OPTIONAL.get(target, (None, None))
        if module is not None and importlib.util.find_spec(module) is None:
            note = f"{module} is not installed: pip install 'edgevlm[{extra}]', then edgevlm verify"
            rows.append(Row(target, "NOT JUDGED", 0, None, True, note))
            continue
        runtime = open_runtime(bundle, ENGINES[target])
        try:
            judge = prompt if target == "onnx" else reference  # only this target has a second decoder
            together = thorough or not is_large(spec.vision)
            found = list(_check_runtime(bundle, target, runtime, judge, cases, answers, together=together))
            rows.extend(found)
            if target == "coreml" and not all(row.passed for row in found):
                rows.append(_first_operation(bundle, reference, cases[0]))
        finally:
            runtime.close()
    brief = is_large(spec.vision) and not thorough
    if "onnx" in targets and brief:
        rows.append(Row("onnx portable", "NOT JUDGED", 0, None, True, "edgevlm verify judges these"))
    elif "onnx" in targets:
        tell("onnx portable")
        runtime = open_runtime(bundle, "onnxruntime", portable=True)
        try:
            rows.extend(_check_runtime(bundle, "onnx portable", runtime, prompt, cases[:1], [], few=True))
        finally:
            runtime.close()
    if original is not None:
        tell("loss")
        rows.extend(_check_loss(bundle, reference, Reference(spec, original), cases[0], answers))
    if progress:
        progress("gate", len(stages), len(stages))
    return GateReport(tuple(rows))


def is_large(vision: VisionSpec) -> bool:
    """Whether a tile takes seconds in numpy: then 13 tiles are a cycle of two, one by one for memory's sake."""
    return vision.num_patches * vision.hidden_size**2 * vision.num_layers > 10**9


def picture_folder() -> Path:
    """The pictures that ship with edgevlm."""
    return Path(str(importlib.resources.files("edgevlm"))) / "assets" / "pictures"


def _cases(bundle: Bundle) -> list[Case]:
    """Single-tile and tiled prompts over the shipped pictures."""
    spec = bundle.manifest.spec
    images = [open_image(picture_folder() / name) for name in PICTURES]
    single, tiled = (replace(bundle.image_spec, split=split) for split in (False, True))
    prompter = Prompter(bundle.prompt_spec, bundle.path("tokenizer.json"))

    def case(name: str, parts: list[Tiles]) -> Case:
        ids = prompter.encode(QUESTION, [part.grid for part in parts])
        return Case(name, ids, np.concatenate([part.pixels for part in parts]))

    singles = [preprocess(image, single) for image in images]
    cases = [case("one tile", singles[:1])]
    if is_large(spec.vision):
        different = np.concatenate([part.pixels for part in singles])
        cases.append(case("tiled", [Tiles(different[np.arange(max(TILE_COUNTS)) % len(different)], (3, 4))]))
    else:
        cases.append(case("two pictures", singles))
        cases.append(case("tiled", [preprocess(images[0], tiled, max_tiles=max(TILE_COUNTS))]))
    limit = spec.decoder.context_length - TOKENS
    return [c for c in cases if len(c.ids) <= limit]


def _check_weights(shipped: ShippedWeights, expected: Expected) -> Row:
    """Every tensor of the original is in the files, as the quantizer made it."""
    wrong = []
    names = expected.names()
    for name in names:
        if name not in shipped:
            wrong.append(name)
            continue
        ours, theirs = shipped.quantized(name), expected.quantized(name)
        same = np.array_equal(ours.codes, theirs.codes.reshape(ours.codes.shape)) and (
            (ours.scale is None) == (theirs.scale is None)
            and (ours.scale is None or theirs.scale is None or np.array_equal(ours.scale, theirs.scale))
        )
        if not same:
            wrong.append(name)
    note = f"first: {wrong[0]}" if wrong else f"{len(names)} tensors"
    return Row("onnx", "weights that differ", len(wrong), 0, not wrong, note)


def gguf_weights(bundle: Bundle) -> Weights:
    """The weights of the GGUF pair under their canonical names."""
    from edgevlm.runtimes.gguf_file import GgufWeights

    entry = bundle.manifest.targets["gguf"]
    return GgufWeights(bundle.path(entry["model"]), bundle.path(entry["mmproj"]), bundle.manifest.spec)


def _check_gguf(pair: Weights, expected: Expected) -> Row:
    """Every matrix and vector of the pair, dequantized, has the bits of the quantizer's."""
    names = [name for name in expected.names() if not name.startswith(PREFILL)]
    wrong = [n for n in names if n not in pair or pair.read(n).tobytes() != expected.read(n).tobytes()]
    note = f"first: {wrong[0]}" if wrong else f"{len(names)} tensors"
    return Row("gguf", "weights that differ", len(wrong), 0, not wrong, note)


def _first_operation(bundle: Bundle, reference: Reference, case: Case) -> Row:
    """Where a CoreML package leaves the reference, by the name of its operation."""
    from edgevlm.runtimes.mil_trace import find_divergence

    prompt = reference.merge(case.ids, reference.features(case.tiles), bundle.prompt_spec.image_token_id)
    found = find_divergence(bundle, reference.weights, case.tiles[:1], prompt)
    note = str(found) if found else "none in fp32 storage: precision, not the graph"
    return Row("coreml", "first operation that differs", 0, None, True, note)


def _numerics(bundle: Bundle, *components: str) -> str:
    """How an engine may round these components' activations: "float", "int8" per block, "dynamic" int8 per call."""
    recipe = bundle.manifest.recipe
    forms = [recipe[component] for component in components]
    if "decoder" in components and recipe.get("prefill"):
        forms.append(recipe["prefill"])
    if any(form["dynamic"] for form in forms):
        return "dynamic"
    return "int8" if any(form["kind"] in ("int8", "int4") for form in forms) else "float"


def _check_runtime(
    bundle: Bundle,
    target: str,
    runtime: Runtime,
    reference: Reference,
    cases: list[Case],
    answers: list[int],
    few: bool = False,
    together: bool = True,
) -> Iterator[Row]:
    """few: fewer tiles and tokens, for a variant whose weights are checked already and which is slow.

    together: also several tiles in one call, where the runtime can.
    """
    kind = target.split()[0]
    vision = bound_of(kind, _numerics(bundle, "vision", "projector"))
    text = bound_of(kind, _numerics(bundle, "decoder", "embed"))
    ids = np.unique(np.concatenate([case.ids for case in cases]))
    worst = float(np.abs(runtime.embed(ids) - reference.embed(ids)).max())
    yield Row(target, "embeddings, largest error", worst, 1e-3, worst <= 1e-3)

    pool, known = np.concatenate([case.tiles for case in cases]), _Once(runtime)
    for count in TILE_COUNTS[:2] if few else TILE_COUNTS:
        tiles = pool[np.arange(count) % len(pool)]
        low = cosine(known(tiles) if not together else runtime.encode(tiles), reference.features(tiles))
        yield _at_least(target, f"features of {count} tile{'s' * (count > 1)}, cosine", low, vision.features)
    if together and hasattr(runtime, "encode_together"):
        # Proof that no tile count is baked in. Dynamic int8 then shares one range among the tiles, which costs a
        # little: runtimes encode one by one.
        count = TILE_COUNTS[1 if few or is_large(bundle.manifest.spec.vision) else 2]
        tiles = pool[np.arange(count) % len(pool)]
        low = cosine(runtime.encode_together(tiles), reference.features(tiles))
        yield _at_least(target, f"features of {count} tiles in one call, cosine", low, min(vision.features, 0.99))

    first = cases[0]
    embeds = reference.merge(first.ids, reference.features(first.tiles), bundle.prompt_spec.image_token_id)
    wanted = reference.logits(embeds)[-1]
    runtime.truncate(0)
    yield _at_least(target, "prefill logits, cosine", cosine(runtime.prefill(embeds), wanted), text.logits)
    half = len(embeds) // 2
    runtime.truncate(0)
    runtime.prefill(embeds[:half])
    low = cosine(runtime.prefill(embeds[half:]), wanted)
    yield _at_least(target, f"prefill after {half} positions, cosine", low, text.logits)
    if hasattr(runtime, "prefill_padded"):
        rows = runtime.prefill_padded([embeds, embeds[:half]])
        low = cosine(rows, np.stack([wanted, reference.logits(embeds[:half])[-1]]))
        yield _at_least(target, "prefill of a padded batch, cosine", low, text.logits)

    for case in cases:
        yield _check_tokens(bundle, target, runtime, known, reference, case, text, answers, 4 if few else TOKENS)


class _Once:
    """A runtime's features, each tile encoded once."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._known: dict[bytes, F32] = {}

    def __call__(self, tiles: F32) -> F32:
        keys = [tile_key(tile) for tile in tiles]
        for key, tile in zip(keys, tiles, strict=True):
            if key not in self._known:
                self._known[key] = self._runtime.encode(tile[None])[0]
        return np.stack([self._known[key] for key in keys])


def _check_tokens(
    bundle: Bundle,
    target: str,
    runtime: Runtime,
    encode: Callable[[F32], F32],
    reference: Reference,
    case: Case,
    bound: Bound,
    answers: list[int],
    count: int,
) -> Row:
    """`count` greedy tokens of the runtime on its own features, each judged by the reference at the same prefix.

    One pass of the reference over the runtime's tokens gives its choice at every step. It equals the reference's own
    greedy answer as long as the two agree, and goes on to judge every later token after they do not.
    """
    image_token = bundle.prompt_spec.image_token_id
    features = encode(case.tiles)
    runtime.truncate(0)
    logits = runtime.prefill(reference.merge(case.ids, features, image_token, embeds=runtime.embed(case.ids)))
    tokens = [int(logits.argmax())]
    while len(tokens) < count:
        tokens.append(int(runtime.step(tokens[-1]).argmax()))
    if not answers:
        answers.extend(tokens)
    prompt = reference.merge(case.ids, reference.features(case.tiles), image_token)
    judged = reference.logits(prompt, reference.embed(np.array(tokens[:-1], np.int64)))
    gaps = judged.max(-1) - judged[np.arange(count), tokens]
    agreed = int((gaps == 0).sum())
    worst = float(gaps.max())
    note = f"{agreed} of {count} tokens equal"
    if agreed < count:
        ties = int(((gaps > 0) & (gaps < bound.near_tie)).sum())
        note += f", {ties} near-tie{'s' * (ties != 1)}, first at token {int(np.flatnonzero(gaps)[0]) + 1}"
    return Row(target, f"{case.name}, largest logit gap", worst, bound.near_tie, worst < bound.near_tie, note)


def _check_loss(
    bundle: Bundle, reference: Reference, original: Reference, case: Case, answers: list[int]
) -> Iterator[Row]:
    """What the shipped weights lose against the original's, both computed by the reference."""
    kinds = {name: bundle.manifest.recipe[name]["kind"] for name in ("vision", "projector", "decoder", "embed")}
    low = cosine(reference.features(case.tiles), original.features(case.tiles))
    order = ("int4", "int8", "fp16", "fp32")
    coarsest = min((kinds["vision"], kinds["projector"]), key=order.index)
    yield _at_least("quantization", "features, cosine", low, LOSS_BOUNDS[coarsest][0])
    image_token = bundle.prompt_spec.image_token_id
    tokens = reference.embed(np.array(answers[:-1], np.int64))
    logits = []
    for model in (original, reference):
        prompt = model.merge(case.ids, model.features(case.tiles), image_token)
        logits.append(model.logits(prompt, tokens))
    coarsest = min(kinds.values(), key=order.index)
    yield _at_least("quantization", "logits, mean cosine", cosine(*logits, lowest=False), LOSS_BOUNDS[coarsest][1])
    same = float((logits[0].argmax(-1) == logits[1].argmax(-1)).mean())
    yield Row("quantization", "top-1 agreement", same, None, True, f"over {TOKENS} tokens, reported only")


def _at_least(target: str, check: str, measured: float, bound: float | None) -> Row:
    passed = bound is None or measured >= bound
    return Row(target, check, measured, bound, passed, "" if bound is not None else "reported only")
