"""`edgevlm eval`: the score of a bundle on a public benchmark, on Scenes, or on questions of one's own."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgevlm.commands.arguments import bundle_folder, nearest, warn_if_failed
from edgevlm.errors import EdgeVLMError
from edgevlm.io.console import note, progress_bar, seconds, table, write
from edgevlm.io.text import json_text, printable

if TYPE_CHECKING:
    from edgevlm.evaluation.item import Item, Suite
    from edgevlm.evaluation.runner import Report

SUITES = ("scenes", "pope", "vqa", "textvqa", "docvqa", "ocrbench", "mmmu", "chartqa", "jsonl")
SCENES = 200  # pictures of the test split that are drawn where no folder is given


@click.command()
@click.argument("bundle")
@click.option("--suite", default="scenes", show_default=True, metavar="NAME", help=", ".join(SUITES) + ".")
@click.option("--data", metavar="DIR", help="The suite's own files, or its data set on the Hub (owner/name).")
@click.option("--json", "json_file", metavar="FILE", help="Write scores by skill as JSON.")
@click.option("--out", metavar="FILE", help="Write each answer as a line of JSON; FILE.part until the last.")
@click.option("--resume", is_flag=True, help="Go on with the answers that a stopped run left.")
@click.option("--limit", type=int, metavar="N", help="Ask N questions, spread evenly over the suite.")
@click.option("--runtime", metavar="NAME", help="onnxruntime, llama.cpp, coreml, eager, or two: encoder+decoder.")
@click.option("--storage", default="fp16", metavar="[fp16|fp32]", help="What the CoreML evaluator rounds values to.")
@click.option("--device", default="cpu", show_default=True, metavar="NAME", help="What to run on, as in edgevlm run.")
@click.option("--threads", type=int, metavar="N", help="CPU threads.  [default: all cores]")
@click.option("--tiles", type=int, metavar="N", help="Most tiles per picture.  [default: the model's]")
@click.option("--prompt", metavar="TEXT", help="In place of the suite's own; {question} stands for the question.")
@click.option("--max-tokens", type=int, metavar="N", help="Longest answer.  [default: the suite's]")
@click.option("--skip-bad", is_flag=True, help="Leave out questions that cannot be asked, instead of stopping.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a Hub data set.")
@click.option("--cache-dir", metavar="DIR", help="Where Hub downloads are kept.")
@click.option("--force", is_flag=True, help="Replace the files of --json and --out.")
def eval(
    bundle: str,
    suite: str,
    data: str | None,
    json_file: str | None,
    out: str | None,
    resume: bool,
    limit: int | None,
    runtime: str | None,
    storage: str,
    device: str,
    threads: int | None,
    tiles: int | None,
    prompt: str | None,
    max_tokens: int | None,
    skip_bad: bool,
    revision: str | None,
    cache_dir: str | None,
    force: bool,
) -> None:
    """Score the answers of BUNDLE on a suite, by the suite's own published rule.

    Without --data the suite scenes draws its test pictures itself; the others need their files. The score, between 0
    and 1, is the only line on standard output; the table on standard error has it by skill with its 95 % interval.
    """
    from edgevlm.bundle.manifest import open_bundle
    from edgevlm.evaluation.answer_file import check_answers
    from edgevlm.evaluation.runner import EvalOptions, evaluate
    from edgevlm.evaluation.suites import SUITES as READY
    from edgevlm.io.apart import check_apart
    from edgevlm.io.files import check_new, write_text
    from edgevlm.runtimes import open_runtime

    if suite not in READY:
        raise EdgeVLMError(f"There is no suite '{suite}': {nearest(suite, READY)}")
    if resume and out is None:
        raise EdgeVLMError("--resume goes on with a file of answers: name it with --out.")
    if revision is not None and (data is None or os.path.exists(data)):
        raise EdgeVLMError("--revision is for data sets of the Hub: name one with --data, or leave it out.")
    options = EvalOptions(prompt, max_tokens, tiles, limit, skip_bad)
    check_apart([("--out", out), ("--json", json_file)], [("--data", data), ("BUNDLE", bundle)])
    if json_file is not None:
        check_new(Path(json_file), force or resume)
    if out is not None:
        check_answers(Path(out), resume, force)
    opened = warn_if_failed(open_bundle(bundle_folder(bundle)))
    with ExitStack() as stack:
        progress = stack.enter_context(progress_bar())
        folder = _folder(READY[suite], data, revision, cache_dir, stack, progress)
        problems: list[str] = []
        items = _items(READY[suite], folder, problems if skip_bad else None)
        engine = open_runtime(opened, runtime, device=device, threads=threads, storage=storage)
        stack.callback(engine.close)
        report = evaluate(
            opened,
            engine,
            READY[suite],
            items,
            options,
            out=Path(out) if out else None,
            resume=resume,
            force=force,
            progress=progress,
        )
    note(report_table(report))
    for problem in (*problems, *report.problems):
        note(f"left out: {printable(problem)}")
    if json_file is not None:
        write_text(Path(json_file), json_text(report.to_dict(bundle), indent=1) + "\n", force or resume)
    write(f"{report.score:.4f}")


def _items(suite: Suite, folder: Path, problems: list[str] | None) -> list[Item]:
    from edgevlm.evaluation.suites import read_items

    return read_items(suite, folder, problems)


def _folder(
    suite: Suite, data: str | None, revision: str | None, cache_dir: str | None, stack: ExitStack, progress: object
) -> Path:
    from edgevlm.evaluation.files import data_folder

    if data is not None:
        return data_folder(data, suite.files, revision, Path(cache_dir) if cache_dir else None)
    if suite.name != "scenes":
        hub = f", or the Hub data set {suite.hub}" if suite.hub else ""
        raise EdgeVLMError(f"The suite {suite.name} needs --data: a folder with {suite.layout}{hub}.")
    from edgevlm.scenes.folder import write_scenes

    place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgevlm-scenes-"))) / "test"
    write_scenes(place, "test", 0, SCENES, progress=progress)  # type: ignore[arg-type]
    return place


def report_table(report: Report) -> str:
    """Scores by skill with their intervals, then the suite's own figures."""
    rows = [(skill, *_cells(found)) for skill, found in report.skills().items()]
    rows.append(("all", *_cells(report.to_dict("")), len(report.results))[:5])  # type: ignore[arg-type]
    text = table(rows, ("skill", "score", "from", "to (95 %)", "questions"))
    if report.metrics:
        text += "\n\n" + table([(name, f"{value:.4g}") for name, value in report.metrics.items()])
    return f"{text}\n{len(report.results)} questions in {seconds(report.seconds)} on {report.runtime}."


def _cells(found: dict[str, float | int]) -> tuple[str, ...]:
    cells = tuple(f"{100 * found[name]:.1f}" for name in ("score", "low", "high"))
    return (*cells, str(found["n"])) if "n" in found else (*cells, str(found["questions"]))
