"""One command's work: checkpoint -> spec + weights -> graphs -> bundle -> gate."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgevlm import __version__
from edgevlm.bundle.files import BUNDLE, list_files, write_json, write_manifest
from edgevlm.bundle.manifest import SCHEMA, Bundle, Manifest, ModelInfo, open_bundle
from edgevlm.bundle.qtensor import QTensor
from edgevlm.bundle.region import REGION, region_bytes, region_dtype, region_shapes
from edgevlm.bundle.targets import TargetEntry
from edgevlm.checkpoint.checkpoint import Checkpoint, Weights
from edgevlm.checkpoint.families import read_image_spec, read_model, read_prompt, read_prompt_spec
from edgevlm.checkpoint.families.tensors import MappedWeights
from edgevlm.checkpoint.opening import open_model
from edgevlm.checkpoint.processor.images import with_newline
from edgevlm.checkpoint.processor.prompts import with_markers
from edgevlm.checkpoint.upstream import UPSTREAM, upstream_files
from edgevlm.errors import EdgeVLMError, GateError
from edgevlm.export.cache_steps import keep_in_8_bits
from edgevlm.export.calibrate.choose import check_budget
from edgevlm.export.calibrate.plan import Calibration, CalibrationOptions, run
from edgevlm.export.calibrate.record import recorded
from edgevlm.export.chat_template import processor_template
from edgevlm.export.coreml_.options import CoreMLOptions
from edgevlm.export.quantize.model import QuantizedModel
from edgevlm.export.quantize.outliers import keep_fine
from edgevlm.export.quantize.recipe import Recipe, fit, make_recipe
from edgevlm.export.quantize.round import quantize
from edgevlm.export.quantize.store import TensorStore
from edgevlm.export.source import read_adapter, read_source
from edgevlm.export.targets import TARGETS, Job
from edgevlm.export.upstream import write_upstream
from edgevlm.inputs.prompt import Prompter
from edgevlm.inputs.spec import ImageSpec
from edgevlm.inputs.tokenizer import settle_tokenizer
from edgevlm.io.folders import Replacement, replacing
from edgevlm.io.options import check_types
from edgevlm.io.records import to_dict
from edgevlm.io.safetensors import write_safetensors
from edgevlm.io.text import check_place
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import CACHES, with_cache
from edgevlm.types import Progress
from edgevlm.verify.answers import QUESTIONS, maybe_questions
from edgevlm.verify.gate import GateOptions, run_gate, typical_view
from edgevlm.verify.reference import Reference
from edgevlm.verify.report import GateReport

_TOOLS = ("numpy", "pillow", "tokenizers", "onnx", "onnxruntime", "gguf", "coremltools")
_WORDS = ("default", "scenes")  # given in the place of a folder


@dataclass(frozen=True)
class ExportOptions:
    model: str  # folder, Hub id or "default"
    out: Path
    targets: tuple[str, ...] = ("onnx",)
    quantize: str = "int4"
    preset: str = "balanced"
    kv_cache: str = "float32"  # or "int8", on ONNX
    components: dict[str, str] = field(default_factory=dict)  # overrides, such as {"vision": "fp16"}
    coreml: CoreMLOptions = field(default_factory=CoreMLOptions)
    adapter: str | None = None
    processor: str | None = None  # where the tokenizer and the processor's files are, if not beside the weights
    revision: str | None = None
    cache_dir: Path | None = None
    force: bool = False
    gate: bool = True
    strict: bool = False  # the gate fails on what it could not judge
    bounds: dict[str, float] = field(default_factory=dict)  # in place of the gate's, see GateOptions
    answers: str | None = None  # questions for the gate: "scenes", a Scenes folder, or one with a questions.jsonl
    questions: int = QUESTIONS  # how many of them
    calibration: CalibrationOptions | None = None  # None: every weight is rounded to nearest

    def __post_init__(self) -> None:
        check_types(self)
        for target in self.targets:
            if target not in TARGETS:
                raise EdgeVLMError(f"Target '{target}' does not exist: choose from {', '.join(TARGETS)}.")
        if not self.targets:
            raise EdgeVLMError(f"No target was given: choose from {', '.join(TARGETS)}.")
        if self.kv_cache not in CACHES:
            raise EdgeVLMError(f"A cache of '{self.kv_cache}' is not available: choose one of {', '.join(CACHES)}.")
        if self.kv_cache != "float32" and self.targets != ("onnx",):
            raise EdgeVLMError(
                "Keys and values of 8 bits are for ONNX alone: CoreML's are fp16, and llama.cpp's what its caller asks "
                "for; export other targets without --kv-cache into a bundle of their own."
            )
        recipe = make_recipe(self.quantize, self.preset, self.components)
        for target in self.targets:
            TARGETS[target].check(recipe, self.coreml)
        GateOptions(bounds=self.bounds)


@dataclass(frozen=True)
class ExportResult:
    folder: Path
    report: GateReport | None
    calibration: dict[str, Any] | None = None  # the manifest's entry


def export_model(options: ExportOptions, progress: Progress | None = None) -> ExportResult:
    """Write the bundle `options.out`.

    Raises EdgeVLMError for what a user can fix, and GateError when the gate fails: then the bundle lies in
    `<out>.failed`, and nothing under `out` has changed.
    """
    progress = progress or (lambda what, done, total: None)
    calibration = options.calibration.source if options.calibration else None
    given = {
        "MODEL": options.model, "--adapter": options.adapter, "--processor": options.processor,
        "--calibrate": calibration, "--answers": options.answers,
    }  # fmt: skip
    inputs = [(name, place) for name, place in given.items() if place not in _WORDS]
    check_place(options.out)
    with replacing(options.out, BUNDLE, options.force, inputs) as output:
        return _export(options, output, progress)


def _export(options: ExportOptions, output: Replacement, progress: Progress) -> ExportResult:
    checkpoint = open_model(
        options.model,
        revision=options.revision,
        cache_dir=options.cache_dir,
        adapter=options.adapter,
        processor=options.processor,
        judge=lambda remote: _read(remote, options),
    )
    spec, weights = _read(checkpoint, options)
    recipe = fit(make_recipe(options.quantize, options.preset, options.components), weights)
    if options.calibration is not None and options.calibration.budget is not None:
        shared = _shared_bytes(checkpoint, spec, recipe)
        check_budget(spec, weights, recipe, options.targets, shared, options.calibration.budget)
    image_spec = with_newline(read_image_spec(checkpoint.processor, spec), weights)
    original = Reference(spec, weights, image_spec)
    recipe = keep_fine(recipe, original, typical_view(image_spec))
    store = TensorStore(output.scratch)
    expected, calibration = QuantizedModel(weights, recipe, store=store), None
    if options.calibration is not None:
        made = _calibrate(
            checkpoint, image_spec, spec, weights, recipe, options, options.calibration, output.scratch, progress
        )
        expected, calibration = QuantizedModel(made.found.original, made.recipe, made.found, store), made.report
        calibration["tensors"] = recorded(expected, made.found)
    if options.kv_cache == "int8":
        spec, expected = keep_in_8_bits(spec, expected, image_spec, _prompter(checkpoint, spec, weights))
    bundle = _write(output.new, checkpoint, image_spec, spec, expected, options, progress, calibration)
    report = None
    if options.gate:
        gate_options = GateOptions(thorough=options.strict, strict=options.strict, bounds=options.bounds)
        with maybe_questions(options.answers, options.questions) as questions:
            report = run_gate(
                bundle,
                original=original,
                expected=expected,
                source=read_source(checkpoint.processor, spec, weights),
                adapter=read_adapter(checkpoint),
                questions=questions,
                progress=progress,
                options=gate_options,
            )
        write_manifest(output.new, replace(bundle.manifest, gate=report.to_dict()))
    if report is None or report.passed:
        output.publish()
        return ExportResult(options.out, report, calibration)
    failed = output.set_aside(f"{options.out.name}.failed")
    error = GateError(
        f"The gate failed: {report.first_failure()}; the bundle lies in '{failed}' for inspection, "
        f"and '{options.out}' was not touched. {report.advice}".rstrip()
    )
    error.report = report
    raise error


def _read(checkpoint: Checkpoint, options: ExportOptions) -> tuple[ModelSpec, MappedWeights]:
    """The model, refused where a target cannot hold it, before anything is fetched or written."""
    spec, weights = read_model(checkpoint)
    held = replace(spec, decoder=with_cache(spec.decoder, options.kv_cache))
    for target in options.targets:
        TARGETS[target].check_model(held, checkpoint.processor / "tokenizer.json", options.coreml)
    return spec, weights


def _shared_bytes(checkpoint: Checkpoint, spec: ModelSpec, recipe: Recipe) -> int:
    """Of the files that every target needs beside its own."""
    own = region_bytes(spec, recipe.quantize)
    return own + sum(path.stat().st_size for path in upstream_files(checkpoint.folder, checkpoint.processor))


def _calibrate(
    checkpoint: Checkpoint,
    image_spec: ImageSpec,
    spec: ModelSpec,
    weights: Weights,
    recipe: Recipe,
    options: ExportOptions,
    calibration: CalibrationOptions,
    scratch: Path,
    progress: Progress,
) -> Calibration:
    prompter = _prompter(checkpoint, spec, weights)
    shared = _shared_bytes(checkpoint, spec, recipe)
    return run(spec, weights, recipe, calibration, image_spec, prompter, options.targets, shared, scratch, progress)


def _prompter(checkpoint: Checkpoint, spec: ModelSpec, weights: Weights) -> Prompter:
    prompt = with_markers(read_prompt_spec(checkpoint.processor, spec), spec, weights)
    return Prompter(prompt, checkpoint.processor / "tokenizer.json")


def _write(
    folder: Path,
    checkpoint: Checkpoint,
    image_spec: ImageSpec,
    spec: ModelSpec,
    expected: QuantizedModel,
    options: ExportOptions,
    progress: Progress,
    calibration: dict[str, Any] | None,
) -> Bundle:
    weights, recipe = expected.weights, expected.recipe
    prompt_spec, picture = read_prompt(checkpoint.processor, spec)
    prompt_spec = with_markers(prompt_spec, spec, weights)
    write_upstream(checkpoint, folder, processor_template(prompt_spec.chat, picture))
    settle_tokenizer(folder / "tokenizer.json")
    write_json(folder / "preprocess.json", to_dict(image_spec))
    write_json(folder / "prompt.json", to_dict(prompt_spec))
    if spec.region is not None:
        _write_region(folder, spec, weights, recipe)

    total = sum(weights.is_linear(name) for name in weights.names())
    targets: dict[str, TargetEntry] = {}
    for target in options.targets:
        done = 0

        def quantized(name: str, target: str = target) -> QTensor:
            nonlocal done
            done += 1
            progress(f"{target}: quantize and write", min(done, total), total)
            return expected.quantized(name)

        (folder / target).mkdir()
        job = Job(folder, spec, weights, recipe, image_spec, prompt_spec, options.coreml, quantized)
        targets[target] = TARGETS[target].write(job)
        progress(f"{target}: quantize and write", total, total)

    info = ModelInfo(
        spec.name, checkpoint.name, checkpoint.revision, checkpoint.content_hash(), checkpoint.adapter_name
    )
    manifest = Manifest(
        SCHEMA,
        info,
        spec,
        to_dict(recipe),
        targets,
        list_files(folder),
        tool_versions(),
        gate=None,
        calibration=calibration,
    )
    write_manifest(folder, manifest)
    if options.calibration is not None and options.calibration.budget is not None:
        _check_budget(manifest, options.calibration.budget)
    return open_bundle(folder)


def _write_region(folder: Path, spec: ModelSpec, weights: Weights, recipe: Recipe) -> None:
    """The region head: no graph has it, and every target needs it."""
    dtype = region_dtype(recipe.quantize)
    kind = {"float32": "fp32", "float16": "fp16"}[dtype]
    shapes = region_shapes(spec)
    write_safetensors(folder / REGION, shapes, lambda name: quantize(weights.read(name), kind, name).codes, dtype)


def _check_budget(manifest: Manifest, budget: int) -> None:
    """Compare each target's real size, shared files included, with the budget: bits were chosen by estimate."""
    shared = sum(info.size for name, info in manifest.files.items() if name in (*UPSTREAM, REGION))
    for target in manifest.targets:
        size = shared + sum(info.size for name, info in manifest.files.items() if name.startswith(f"{target}/"))
        if size > budget:
            raise EdgeVLMError(
                f"The target {target} came to {size / 1e6:.1f} MB with the files that it needs, more than the budget "
                f"of {budget / 1e6:.1f} MB: ask for less, so that the estimate leaves room."
            )


def tool_versions() -> dict[str, str]:
    versions = {"edgevlm": __version__, "python": platform.python_version()}
    for name in _TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
