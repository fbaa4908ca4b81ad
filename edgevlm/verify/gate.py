"""The gate: every artifact against the eager reference, component by component and token by token.

Three levels. Numbers: the weights in the files, the arithmetic of pictures, features, logits, KL divergence. Tokens:
prompt ids, and the choice at every position of a greedy answer. Answers: the score on a set of questions.

The reference computes in float32 on the very weights that ship, so that a bound judges the graph and the engine.
What quantization itself costs is measured apart, against the original weights.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from edgevlm.bundle.manifest import Bundle
from edgevlm.bundle.weights import ShippedWeights
from edgevlm.errors import EdgeVLMError, install_hint
from edgevlm.inputs.clip import make_clip
from edgevlm.inputs.decode import decode_image, open_image
from edgevlm.inputs.preprocess import Prepared, prepare
from edgevlm.inputs.spec import ImageSpec, tiled
from edgevlm.io import limits
from edgevlm.io.options import check_types
from edgevlm.io.processor import processor
from edgevlm.models.ops import Weights
from edgevlm.runtimes import open_runtime
from edgevlm.runtimes.base import Runtime
from edgevlm.types import U8, Progress
from edgevlm.verify.adapter import MergedAdapter, check_adapter
from edgevlm.verify.advice import advice, notes
from edgevlm.verify.bounds import LOSS_BOUNDS, bound_of
from edgevlm.verify.inputs import Source, check_golden, check_inputs, golden
from edgevlm.verify.layers import layer_losses
from edgevlm.verify.reference import Reference
from edgevlm.verify.report import Bound, GateReport, Loss, Row
from edgevlm.verify.runtime import TILE_COUNTS, TOKENS, Case, check_loss, check_runtime, is_large
from edgevlm.verify.targets import JUDGES, JudgedTarget, bundle_weights
from edgevlm.verify.weights import ExpectedWeights, check_region

if TYPE_CHECKING:
    from edgevlm.evaluation.runner import Report
    from edgevlm.verify.answers import Questions

T = TypeVar("T", Bound, Loss)
PICTURES = ("coffee.jpg", "scene-tall.png")
QUESTION = "What is in the picture?"

UNJUDGED = "NOT JUDGED"
UNJUDGED_VIDEO = "videos, not judged"


@dataclass(frozen=True)
class GateOptions:
    """thorough: for large encoders too, run several tiles in one call and the graphs of standard operators, which take
    over a gigabyte and most of the time; without it the report says that they were not judged.
    strict: checks that could not be run count as failures.
    bounds: values in place of the tables', by name: "kl", "onnx.kl" for one target, "loss.kl" for quantization.
    """

    thorough: bool = True
    strict: bool = False
    bounds: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        fields = {"": [f.name for f in dataclasses.fields(Bound)], "loss": [f.name for f in dataclasses.fields(Loss)]}
        for name in self.bounds:
            scope, _, field = name.rpartition(".")
            if field not in fields["loss" if scope == "loss" else ""] or scope not in ("", "loss", *JUDGES):
                raise EdgeVLMError(
                    f"There is no bound '{name}': choose one of {', '.join(fields[''])}, for one target as in "
                    f"onnx.kl, or for what quantization costs as in loss.kl."
                )

    def apply(self, scope: str, bound: T) -> T:
        """`bound` with the values that stand for all targets or for `scope`, a target or "loss"."""
        names = {f.name for f in dataclasses.fields(bound)}
        plain = {name: value for name, value in self.bounds.items() if name in names and scope != "loss"}
        own = {
            name.removeprefix(f"{scope}."): value for name, value in self.bounds.items() if name.startswith(f"{scope}.")
        }
        changed: dict[str, Any] = {**plain, **own}
        return replace(bound, **changed)


def run_gate(
    bundle: Bundle,
    *,
    original: Reference | None = None,
    expected: ExpectedWeights | None = None,
    source: Source | None = None,
    adapter: MergedAdapter | None = None,
    questions: Questions | None = None,
    progress: Progress | None = None,
    options: GateOptions | None = None,
) -> GateReport:
    """Compare every target of `bundle` with the reference.

    original: the reference on the checkpoint's weights, to measure what quantization costs. expected: the quantizer's
    result for them, which the files must hold. source: the rules of the checkpoint's own processor, for pictures and
    prompts. adapter: what was merged into the original, of which peft is asked. Without them (a bundle alone) these
    parts are left out, and the inputs are compared with the export's record.
    questions: asked on every target, for the third level; its score is compared with the original's, or without that
    with the reference's. This is the slowest part: the reference answers every question in numpy.
    """
    options = options or GateOptions()
    rows: list[Row] = []
    targets = list(bundle.manifest.targets)
    stages = ["weights", "inputs"] + targets + ["onnx portable"] * ("onnx" in targets) + ["loss"]
    stages += ["answers"] * (questions is not None)

    def begin(stage: str) -> None:
        if progress:
            progress("gate", stages.index(stage), len(stages))

    begin("weights")
    shipped, found = _weights(bundle, expected)
    rows += found
    if adapter is not None:
        rows.append(check_adapter(adapter))
    spec = bundle.manifest.spec
    reference = Reference(spec, shipped, bundle.image_spec)
    fast = bundle.manifest.recipe.get("prefill") is not None and "onnx" in targets
    second = ShippedWeights(bundle, prompt=True) if fast else None
    prompt = Reference(spec, shipped, bundle.image_spec, second) if fast else reference
    begin("inputs")
    rows += check_inputs(bundle, source, decode_image(picture_folder() / PICTURES[0]), QUESTION)
    cases = _cases(bundle)
    rows += check_golden(cases, reference, bundle.manifest.gate or {})
    answers: list[int] = []
    layers: dict[str, dict[str, float]] = {}
    baseline_scores: list[Report] = []

    def bounds(target: str) -> tuple[Bound, Bound]:
        vision, text = (options.apply(target, bound_of(target, form)) for form in _by_part(bundle).values())
        return vision, text

    for target in targets:
        begin(target)
        this, numerics = JUDGES[target], _by_part(bundle)
        if this.module is not None and importlib.util.find_spec(this.module) is None:
            note = f"{this.module} is not installed: {install_hint(this.extra)}, then edgevlm verify"
            rows.append(Row(target, UNJUDGED, 0, None, not options.strict, note))
            continue
        rows += this.before(bundle, numerics)
        runtime = open_runtime(bundle, this.engine(bundle))
        try:
            judge = prompt if target == "onnx" else reference  # only this target has a second decoder
            own = [case for case in cases if case.frames == 1 or runtime.encoder.name != "llama.cpp"]
            if len(own) < len(cases):
                note = "llama.cpp encodes single pictures: another engine encodes frames that are one view together"
                rows.append(Row(target, UNJUDGED_VIDEO, 0, None, True, note))
            together = options.thorough or not is_large(spec.vision)
            found = list(
                check_runtime(bundle, target, runtime, judge, own, answers, *bounds(target), together=together)
            )
            if questions is not None:
                begin("answers")
                found.append(
                    _check_answers(bundle, target, runtime, questions, shipped, original, options, baseline_scores)
                )
            rows.extend(found)
            passed, logits = all(row.passed for row in found), bounds(target)[1].logits
            more, values = this.after(JudgedTarget(bundle, judge, cases[0], numerics, passed, logits))
            rows += more
            layers |= {target: values} if values else {}
        finally:
            runtime.close()
    brief = is_large(spec.vision) and not options.thorough
    if "onnx" in targets and brief:
        rows.append(Row("onnx portable", UNJUDGED, 0, None, not options.strict, "edgevlm verify judges these"))
    elif "onnx" in targets:
        begin("onnx portable")
        runtime = open_runtime(bundle, "onnxruntime", portable=True)
        try:
            portable = check_runtime(bundle, "onnx portable", runtime, prompt, cases[:1], [], *bounds("onnx"), few=True)
            rows.extend(portable)
        finally:
            runtime.close()
    if original is not None:
        begin("loss")
        losses = (options.apply("loss", loss) for loss in _losses(bundle))
        rows.extend(check_loss(reference, original, cases[0], answers, *losses))
        if not brief:
            layers["quantization"] = layer_losses(reference, original, cases[0])
        if questions is None and any(row.bound is None for row in rows if row.target == "quantization"):
            note = "four bits are judged by answers: give questions (--answers)"
            rows.append(Row("quantization", UNJUDGED, 0, None, not options.strict, note, "answers"))
    if progress:
        progress("gate", len(stages), len(stages))
    recipe, cpu = bundle.manifest.recipe, processor()
    limited = "choice" in (bundle.manifest.calibration or {})
    advised = advice(rows, recipe, limited=limited)
    told = tuple(notes(rows, recipe, cpu))
    return GateReport(tuple(rows), layers, golden(cases, reference), cpu, told, advised)


def _weights(bundle: Bundle, expected: ExpectedWeights | None) -> tuple[Weights, list[Row]]:
    """The weights that the reference computes with, and the rows that hold every target's files to `expected`."""
    targets = bundle.manifest.targets
    shipped: Weights = expected if expected is not None and "onnx" not in targets else bundle_weights(bundle)
    if expected is None:
        return shipped, []
    head = [check_region(bundle, expected)] if bundle.manifest.spec.region is not None else []
    return shipped, [JUDGES[name].check_weights(bundle, expected) for name in targets] + head


def _check_answers(
    bundle: Bundle,
    target: str,
    runtime: Runtime,
    questions: Questions,
    shipped: Weights,
    original: Reference | None,
    options: GateOptions,
    baseline_scores: list[Report],
) -> Row:
    """The target's score against the baseline's, which is computed once and kept in `baseline_scores`."""
    from edgevlm.runtimes.eager import eager_runtime
    from edgevlm.verify.answers import check_answers

    if not baseline_scores:
        baseline = eager_runtime(bundle, shipped if original is None else original.weights)
        baseline_scores.append(questions.ask(bundle, baseline))
        baseline.close()
    numerics = _numerics(bundle, "vision", "projector", "decoder", "embed")
    bound: float | None = options.apply(target, bound_of(target, numerics)).answers
    if original is not None and bound is not None:
        loss = options.apply("loss", _losses(bundle)[1]).answers
        bound = None if loss is None else bound + loss
    return check_answers(target, baseline_scores[0], questions.ask(bundle, runtime), bound)


def picture_folder() -> Path:
    """The pictures that ship with edgevlm."""
    return Path(str(importlib.resources.files("edgevlm"))) / "assets" / "pictures"


def typical_view(spec: ImageSpec) -> U8:
    """A shipped picture as one view (H, W, 3), the first that the gate looks at."""
    return prepare(open_image(picture_folder() / PICTURES[0]), spec, max_tiles=1).views[0]


def _cases(bundle: Bundle) -> list[Case]:
    """Single-tile and tiled prompts over the shipped pictures."""
    spec = bundle.manifest.spec
    images = [open_image(picture_folder() / name) for name in PICTURES]
    prompter = bundle.prompter()

    def case(name: str, parts: list[Prepared]) -> Case:
        ids, layout = prompter.encode(QUESTION, [part.tokens for part in parts])
        return Case(name, ids, [view for part in parts for view in part.views], layout)

    singles = [prepare(image, bundle.image_spec, max_tiles=1) for image in images]
    cases = [case("one tile", singles[:1])]
    alone = bundle.prompt_spec.chat.pictures == 1
    if is_large(spec.vision) and bundle.image_spec.packing is None and not alone:
        different = [part.views[0] for part in singles]
        whole = singles[0].tokens[0]
        tiles = [whole._replace(place=(row, col)) for row in range(1, 4) for col in range(1, 5)]
        many = Prepared([different[i % len(different)] for i in range(max(TILE_COUNTS))], [*tiles, whole])
        cases.append(case("tiled", [many]))
    else:
        cases.append(case("other picture", singles[1:]) if alone else case("two pictures", singles))
        most = 3 if is_large(spec.vision) else max(TILE_COUNTS)
        cut = prepare(images[0], tiled(bundle.image_spec), max_tiles=most)
        cut_up = [view.shape for view in cut.views] != [view.shape for view in singles[0].views]
        cases += [case("tiled", [cut])] if cut_up else []
    limit = spec.decoder.context_length - TOKENS
    return [c for c in [*cases, *_video(bundle, images)] if len(c.ids) <= limit]


def _video(bundle: Bundle, images: list[U8]) -> list[Case]:
    """A prompt over the pictures as frames, where the model takes videos: each view's frames differ."""
    image, video = bundle.image_spec, bundle.image_spec.video
    if video is None:
        return []
    pictures = [Image.fromarray(image) for image in images]
    # A single frame may be a view of the other prompts, which is encoded once; pairs are not, so these are small.
    frames = pictures if video.group == 1 else [picture.reduce(2) for picture in (*pictures, *pictures[::-1])]
    numbers = np.arange(len(frames))
    clip = make_clip(frames, numbers, len(frames), 2.0, image, video, limits.PICTURE_TOKENS)
    content = [{"type": "video", "like_text": video.like_text}, {"type": "text", "text": QUESTION}]
    ids, layout = bundle.prompter().encode([{"role": "user", "content": content}], [clip.tokens])
    return [Case("video", ids, clip.views, layout)]


def _numerics(bundle: Bundle, *components: str) -> str:
    """How an engine may round these components' activations: "float", "int8" per block, "dynamic" int8 per call."""
    recipe = bundle.manifest.recipe
    forms = [recipe[component] for component in components]
    if "decoder" in components and recipe.get("prefill"):
        forms.append(recipe["prefill"])
    if any(form["dynamic"] for form in forms):
        return "dynamic"
    if "decoder" in components and bundle.manifest.spec.decoder.cache == "int8":
        return "int8"
    return "int8" if any(form["kind"] in ("int8", "int4") for form in forms) else "float"


def _by_part(bundle: Bundle) -> dict[str, str]:
    return {"vision": _numerics(bundle, "vision", "projector"), "decoder": _numerics(bundle, "decoder", "embed")}


def _losses(bundle: Bundle) -> tuple[Loss, Loss]:
    """The bounds of the coarsest form in the encoder, and in the whole model."""
    order = ("palette4", "int4", "palette6", "int8", "fp16", "fp32")

    def coarsest(*components: str) -> Loss:
        return LOSS_BOUNDS[min((bundle.manifest.recipe[name]["kind"] for name in components), key=order.index)]

    return coarsest("vision", "projector"), coarsest("vision", "projector", "decoder", "embed")
