"""`edgevlm verify`: hash every file of a bundle, and run the gate again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgevlm.commands.arguments import bundle_folder, check_model, check_questions, given
from edgevlm.commands.gate_table import gate_table, read_bounds
from edgevlm.errors import EdgeVLMError, GateError
from edgevlm.io.console import note, progress_bar, size, table
from edgevlm.io.text import json_text, printable

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle
    from edgevlm.export.quantize.model import QuantizedModel
    from edgevlm.verify.adapter import MergedAdapter
    from edgevlm.verify.inputs import Source
    from edgevlm.verify.lint_ane import Finding

# Options of the gate, which the checks in its place have no use for.
_OF_THE_GATE = ("model", "adapter", "revision", "cache_dir", "answers", "questions", "bound", "strict", "json_file")


@click.command()
@click.argument("bundle")
@click.option("-m", "--model", metavar="MODEL", help="The original: folder, Hub id or 'default'.")
@click.option("--adapter", metavar="FOLDER", help="The adapter that was merged into it.")
@click.option("--processor", metavar="MODEL", help="Where its tokenizer and processor are, if not beside its weights.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a Hub model.")
@click.option("--cache-dir", "--cache_dir", metavar="DIR", help="Where Hub downloads are kept.")
@click.option("--answers", metavar="SET", help="Ask questions too: scenes, or a folder of them.")
@click.option("--questions", type=int, default=100, show_default=True, metavar="N", help="How many of them.")
@click.option("--bound", multiple=True, metavar="NAME=X", help="Judge by X, as in kl=0.1, onnx.kl=0.1 or loss.kl=0.2.")
@click.option("--strict", is_flag=True, help="Fail on what could not be judged.")
@click.option("--json", "json_file", metavar="FILE", help="Write the results as JSON.")
@click.option("--force", is_flag=True, help="Replace the file of --json.")
@click.option("--lint", metavar="ane", help="Check the CoreML packages against the Neural Engine's rules instead.")
@click.option("--overflow", is_flag=True, help="List CoreML operations that leave fp16's range instead.")
@click.option("--across", is_flag=True, help="Compare the engines of BUNDLE with each other instead.")
@click.option("--second-opinion", is_flag=True, help="Write the model for Core AI and execute it there instead. Beta.")
def verify(
    bundle: str,
    model: str | None,
    adapter: str | None,
    processor: str | None,
    revision: str | None,
    cache_dir: str | None,
    answers: str | None,
    questions: int,
    bound: tuple[str, ...],
    strict: bool,
    json_file: str | None,
    force: bool,
    lint: str | None,
    overflow: bool,
    across: bool,
    second_opinion: bool,
) -> None:
    """Check a bundle's files, and run its gate again.

    Every file of BUNDLE is compared with its hash, and every target with the reference. With --model the
    weights, preprocessing and prompts are compared with the original's too; without it, this needs no more than the
    base install and shows that this machine computes what the bundle says. With --answers every target also answers
    questions, which the numpy reference takes long for. Exits with 1 when a bound is missed.

    With --across all engines that this machine has and the eager reference answer the same prompts, side by side,
    and the first component that diverges is named. --lint ane predicts from static rules, each with its source, what
    the Neural Engine will do with the CoreML packages; only a device can tell what it does. --second-opinion needs the
    extra coreai: the model in float32, as .aimodel in a temporary folder, on Core AI's own runtime, which also runs on
    Linux.
    """
    from edgevlm.bundle.manifest import open_bundle
    from edgevlm.io.apart import check_apart
    from edgevlm.io.files import check_new, write_text
    from edgevlm.models.spec import with_cache
    from edgevlm.verify.answers import maybe_questions
    from edgevlm.verify.gate import GateOptions, run_gate
    from edgevlm.verify.reference import Reference

    if lint not in (None, "ane"):
        raise EdgeVLMError(f"There are no rules '{lint}' to lint by: use --lint ane.")
    instead = given("lint", "overflow", "across", "second_opinion")
    if instead and (others := given(*_OF_THE_GATE)):
        raise EdgeVLMError(f"{others[0]} is for the gate, and {instead[0]} runs none: leave one of the two out.")
    if model is None and (others := given("adapter", "revision", "cache_dir")):
        raise EdgeVLMError(f"{others[0]} belongs to the original: name that with --model, or leave it out.")
    if model is not None:
        check_model(model, revision)
    check_questions(answers)
    options = GateOptions(strict=strict, bounds=read_bounds(bound))
    if json_file is not None:
        read = [("BUNDLE", bundle), ("--model", model), ("--adapter", adapter), ("--answers", answers)]
        check_apart([("--json", json_file)], [given for given in read if given[1] not in ("default", "scenes")])
        check_new(Path(json_file), force)
    opened = open_bundle(bundle_folder(bundle), check="hash")
    note(f"{len(opened.manifest.files)} files match their sha256.")
    if lint is not None or overflow or across or second_opinion:
        if lint is not None:
            _lint(opened)
        if overflow:
            _overflow(opened)
        if across:
            _across(opened)
        if second_opinion:
            _second_opinion(opened)
        return
    expected, source, merged = None, None, None
    if model is not None:
        expected, source, merged = _expected(
            opened, model, adapter, processor, revision, Path(cache_dir) if cache_dir else None
        )
    with progress_bar() as progress, maybe_questions(answers, questions) as question_set:
        spec = opened.manifest.spec
        spec = replace(spec, decoder=with_cache(spec.decoder, "float32"))
        original = Reference(spec, expected.weights, opened.image_spec) if expected else None
        report = run_gate(
            opened,
            original=original,
            expected=expected,
            source=source,
            adapter=merged,
            questions=question_set,
            progress=progress,
            options=options,
        )
    note(gate_table(report.to_dict()))
    if json_file is not None:
        write_text(Path(json_file), json_text(report.to_dict(), indent=1) + "\n", force)
    if not report.passed:
        raise GateError(f"'{bundle}' does not hold on this machine: {report.first_failure()}. {report.advice}".rstrip())
    if expected is None:
        note("Without --model the cost of quantization was not measured again.")


def _lint(bundle: Bundle) -> None:
    from edgevlm.verify.lint_ane import lint_bundle

    reports = lint_bundle(bundle)
    for report in reports:
        rows = [
            (f.name, f"{f.predicted_ane:.0%} of {len(f.operations)} operations", size(round(f.bytes_per_token)))
            for f in report.functions
        ]
        note(
            f"\n{printable(report.package)}\n"
            + table(rows, ("function", "predicted on the Neural Engine", "read per token"))
        )
        for line in _summed(report.findings):
            note(f"  {printable(line)}")
    if not all(report.passed for report in reports):
        raise GateError(f"'{bundle.folder}' breaks rules of the Neural Engine: export with --coreml-profile ane.")


def _summed(findings: Sequence[Finding]) -> list[str]:
    """One line per sentence: findings that differ in their place and their numbers only are counted."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.rule, re.sub(r"\d+", "#", finding.message)), []).append(finding)
    return [
        str(same[0]) if len(same) == 1 else str(replace(same[0], where=f"{same[0].where} and {len(same) - 1} more"))
        for same in groups.values()
    ]


def _overflow(bundle: Bundle) -> None:
    from edgevlm.inputs.decode import open_image
    from edgevlm.inputs.preprocess import normalize, preprocess
    from edgevlm.runtimes.mil.overflow import overflow_report
    from edgevlm.verify.gate import PICTURES, QUESTION, picture_folder

    spec = bundle.image_spec
    pictures = [preprocess(open_image(picture_folder() / name), spec, max_tiles=1) for name in PICTURES]
    views = [[normalize(view, spec) for view in own] for own in pictures]
    ids, _ = bundle.prompter().encode(QUESTION)
    report = overflow_report(bundle, views, ids)
    for row in report.problems:
        note(f"  {printable(str(row))}")
    note(f"{len(report.problems)} of {len(report.rows)} operations leave fp16's range on {len(pictures)} pictures.")
    if report.problems:
        raise GateError(f"'{bundle.folder}' does not fit fp16: {report.problems[0]}.")


def _across(bundle: Bundle) -> None:
    from edgevlm.verify.across import HEAD, verify_across

    with progress_bar() as progress:
        report = verify_across(bundle, progress=progress)
    note(table(report.table(), HEAD))
    if report.tensors:
        note(f"{report.tensors - len(report.different)} of {report.tensors} tensors are equal bit for bit.")
    for line in (*report.skipped, *report.warnings):
        note(printable(line))
    if not report.agreed:
        row = next((r for r in report.rows if r.divergence != "none"), None)
        where = f"{row.first} and {row.second} first at the {row.divergence}" if row else report.different[0]
        raise GateError(f"The engines of '{bundle.folder}' differ: {where}.")


def _second_opinion(bundle: Bundle) -> None:
    from tempfile import TemporaryDirectory

    from edgevlm.export.coreai_.write import write_aimodel
    from edgevlm.runtimes.base import Runtime
    from edgevlm.runtimes.coreai import CoreAIRuntime
    from edgevlm.verify.second_opinion import BOUND, HEAD, questions, second_opinion
    from edgevlm.verify.targets import bundle_weights

    spec, weights, prompts = bundle.manifest.spec, bundle_weights(bundle), questions(bundle)
    context = max(len(question.ids) for question in prompts)
    with TemporaryDirectory(prefix="edgevlm-") as folder, progress_bar() as progress:
        views = [view.shape[:2] for question in prompts for view in question.views]
        write_aimodel(Path(folder), spec, weights, context, views)
        with closing(CoreAIRuntime(Path(folder), spec, weights, bundle.image_spec, context)) as engine:
            opinions = second_opinion(bundle, weights, Runtime(engine, engine), prompts, progress)
    note(table([opinion.row() for opinion in opinions], HEAD))
    if not all(opinion.agreed for opinion in opinions):
        raise GateError(f"Core AI computes something else from '{bundle.folder}': a cosine is below {BOUND}.")


def _expected(
    bundle: Bundle,
    model: str,
    adapter: str | None,
    processor: str | None,
    revision: str | None,
    cache_dir: Path | None,
) -> tuple[QuantizedModel, Source, MergedAdapter | None]:
    """The original quantized by the bundle's recipe, its preprocessing, and what was merged into it.

    Raises EdgeVLMError if the bundle has other weights.
    """
    from edgevlm.checkpoint.families import read_model
    from edgevlm.checkpoint.opening import open_model
    from edgevlm.export.calibrate.record import open_recorded
    from edgevlm.export.quantize.model import QuantizedModel
    from edgevlm.export.quantize.recipe import Recipe
    from edgevlm.export.source import read_adapter, read_source
    from edgevlm.io.records import from_dict

    checkpoint = open_model(model, revision=revision, cache_dir=cache_dir, adapter=adapter, processor=processor)
    made_from = bundle.manifest.model
    if checkpoint.content_hash() != made_from.weights_sha256:
        merged = f" with the adapter {made_from.adapter}" if made_from.adapter else ""
        raise EdgeVLMError(
            f"'{model}' has other weights than the bundle was made from: "
            f"give {made_from.source}{merged}, or export the bundle again."
        )
    recipe = from_dict(Recipe, bundle.manifest.recipe, "manifest.json: recipe")
    weights = read_model(checkpoint)[1]
    expected = QuantizedModel(weights, recipe, open_recorded(bundle))
    return expected, read_source(checkpoint.processor, bundle.manifest.spec, weights), read_adapter(checkpoint)
