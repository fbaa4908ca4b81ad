"""`edgevlm bench`: what a bundle costs on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgevlm.commands.arguments import bundle_folder, warn_if_failed
from edgevlm.errors import EdgeVLMError
from edgevlm.io.console import note, progress_bar, seconds, size, table, write, write_json
from edgevlm.io.text import printable

if TYPE_CHECKING:
    from edgevlm.bench.measure import Subject


@click.command()
@click.argument("bundle")
@click.option(
    "--vs",
    multiple=True,
    metavar="OTHER",
    help="Compare with another bundle, another runtime, or BUNDLE@RUNTIME, in turns; may be repeated.",
)
@click.option("--runtime", metavar="NAME", help="onnxruntime, llama.cpp, coreml, eager, or two: encoder+decoder.")
@click.option("--device", default="cpu", show_default=True, metavar="[cpu|gpu|npu]", help="As for `edgevlm run`.")
@click.option("--threads", type=int, metavar="N", help="CPU threads.  [default: the engine's own choice]")
@click.option("--repeat", type=int, default=6, show_default=True, metavar="N", help="Warm questions.")
@click.option("--cold", type=int, default=3, show_default=True, metavar="N", help="Fresh processes.")
@click.option("--tokens", type=int, default=32, show_default=True, metavar="N", help="Tokens of each answer.")
@click.option("--tiles", type=int, metavar="N", help="Most tiles of the picture.  [default: the model's]")
@click.option("--picture", metavar="FILE", help="Picture to ask about.  [default: a shipped photograph]")
@click.option("--question", metavar="TEXT", help="Question to ask.  [default: for a description]")
@click.option("--json", "json_file", metavar="FILE", help="Write every figure there; '-' is standard output.")
@click.option("--force", is_flag=True, help="Replace FILE.")
def bench(
    bundle: str,
    vs: tuple[str, ...],
    runtime: str | None,
    device: str,
    threads: int | None,
    repeat: int,
    cold: int,
    tokens: int,
    tiles: int | None,
    picture: str | None,
    question: str | None,
    json_file: str | None,
    force: bool,
) -> None:
    """Measure what BUNDLE costs on this machine.

    The four stages (preprocess, encode, prefill, decode), cold in fresh processes and warm, with medians and
    spread; image tokens, peak memory, bytes on disk, and the device. With --vs, bundles or runtimes take turns, and
    their ratios are medians over neighbouring runs.
    """
    from edgevlm.bench.measure import PICTURE, QUESTION, BenchOptions, Subject
    from edgevlm.bench.measure import bench as measure
    from edgevlm.bundle.manifest import open_bundle
    from edgevlm.io.apart import check_apart
    from edgevlm.io.files import check_new, write_text

    if json_file not in (None, "-"):
        check_new(Path(json_file), force)
    options = BenchOptions(
        repeat=repeat,
        cold=cold,
        tokens=tokens,
        tiles=tiles,
        threads=threads,
        device=device,
        picture=Path(picture) if picture else PICTURE,
        question=question or QUESTION,
    )
    first = Subject(bundle_folder(bundle), runtime)
    subjects = [first, *(_other(text, first) for text in vs)]
    if json_file not in (None, "-"):
        check_apart([("--json", json_file)], [("--picture", picture), *(("BUNDLE", each.bundle) for each in subjects)])
    for folder in dict.fromkeys(subject.bundle for subject in subjects):
        warn_if_failed(open_bundle(folder))
    with progress_bar() as progress:
        report = measure(subjects, options, progress)
    if json_file == "-":
        note(describe(report))
        write_json(report, indent=1)
        return
    write(describe(report))
    if json_file:
        write_text(Path(json_file), json.dumps(report, indent=1) + "\n", force)


def _other(text: str, first: Subject) -> Subject:
    """The subject that --vs names: a runtime for the same bundle, BUNDLE@RUNTIME, or a bundle on the same runtime."""
    from edgevlm.bench.measure import Subject
    from edgevlm.runtimes import ALIASES, RUNTIMES

    def known(name: str) -> bool:
        return all(part in RUNTIMES or part in ALIASES for part in name.split("+"))

    if not Path(text).exists():
        if known(text):
            return Subject(first.bundle, text)
        folder, at, runtime = text.rpartition("@")
        if at and known(runtime):
            return Subject(bundle_folder(folder), runtime)
        if not at and "/" not in text:
            raise EdgeVLMError(
                f"'{text}' is neither a bundle nor a runtime: give a bundle's folder, one of {', '.join(RUNTIMES)}, "
                "or BUNDLE@RUNTIME."
            )
    return Subject(bundle_folder(text), first.runtime)


def describe(report: dict[str, Any]) -> str:
    """The report for people."""
    from edgevlm.bench.device_card import card_line

    card, settings, subjects = report["device"], report["settings"], report["subjects"]
    threads = settings["threads"]
    lines = [
        card_line(card),
        f"medians of {settings['repeat']} warm questions and {settings['cold']} fresh processes, "
        f"{settings['tokens']} tokens, {'threads: ' + str(threads) if threads else 'threads as the engine chooses'}",
    ]
    for subject in subjects:
        lines += ["", printable(f"{subject['name']}: {subject['engine']}, {subject['quantize']}"), _stages(subject)]
    for entry in report.get("vs", ()):
        rows = [
            (stage, "-" if ratio is None else f"{ratio:.2f}x", _range(entry["spread"][stage]))
            for stage, ratio in entry["ratios"].items()
        ]
        lines += [
            "",
            printable(f"{entry['name']} against {subjects[0]['name']}")
            + f", {entry['pairs']} pairs; above 1 the latter is faster",
            table(rows, ("stage", "median", "spread")),
        ]
    lines += _warnings(card, subjects)
    return "\n".join(lines)


def _stages(subject: dict[str, Any]) -> str:
    tokens = {
        "encode": f"{subject['image_tokens']} image tokens",
        "prefill": f"{subject['prompt_tokens']} prompt tokens",
        "decode": "a token",
    }
    rows = [
        (
            stage,
            *(text for kind in ("warm", "cold") for text in _spread(subject[kind][stage])),
            _speed(warm["median"]) if stage == "decode" else tokens.get(stage, ""),
        )
        for stage, warm in subject["warm"].items()
    ]
    for name, words in (("start", "interpreter and packages"), ("load", "bundle and engine")):
        rows.append((name, "", "", *_spread(subject[name]), words))
    memory = size(subject["peak_memory"]) if subject["peak_memory"] else "unknown"
    disk = subject["bytes"]
    return (
        table(rows, ("stage", "warm", "spread", "cold", "spread", ""))
        + f"\n  peak memory {memory}, on disk {size(disk['runtime'])} for this engine, {size(disk['bundle'])} in all"
    )


def _speed(per_token: float) -> str:
    return f"a token, {1 / per_token:.1f} per second" if per_token > 0 else "a token"


def _spread(figure: dict[str, Any]) -> tuple[str, str]:
    return seconds(figure["median"]), f"{seconds(figure['min'])} to {seconds(figure['max'])}"


def _range(pair: list[float] | None) -> str:
    return "" if pair is None else f"{pair[0]:.2f}x to {pair[1]:.2f}x"


def _warnings(card: dict[str, Any], subjects: list[dict[str, Any]]) -> list[str]:
    """Reasons not to trust these figures."""
    found = []
    load, cores = card["load"], card["usable_cores"] or 1
    if load is not None and load > cores / 4:
        found.append(f"The machine was busy before the first run (load {load}): measure again when it is quiet.")
    if any("evaluator" in str(subject["engine"]) for subject in subjects):
        found.append("CoreML was played by the evaluator, which checks answers: its times say nothing of a device.")
    return ["", *found] if found else []
