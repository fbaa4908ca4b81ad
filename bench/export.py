"""EdgeVLM's export beside other exporters on the same checkpoint: seconds and peak memory, in turns of one run.

    python tests/build_smolvlm.py 256m smolvlm-256m
    python bench/export.py smolvlm-256m --out exports [--only NAME ...] [--repeat 3] [--llama-cpp CHECKOUT]

EdgeVLM writes ONNX, CoreML and GGUF, with and without its gate; every other program writes its one format. Each runs in
a process of its own, other programs in environments below OUT that are set up once. Memory is the largest resident set
of the process or of one that it started. A ratio is a program's time over that of EdgeVLM with its gate in the same
turn. A program that cannot export the checkpoint is listed with its own error.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TARGETS = "onnx,coreml,gguf"
OWN = "edgevlm"


@dataclass(frozen=True)
class Exporter:
    """command: its arguments, with {python}, {model}, {out} and {llama} in them. needs: what pip installs for it."""

    name: str
    title: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()


_OWN = ("{python}", str(HERE / "export.py"), "stages", "{model}", "{out}")
EXPORTERS = (
    Exporter(OWN, "EdgeVLM, three targets and the gate, int4", (*_OWN, "gate")),
    Exporter("edgevlm-no-gate", "EdgeVLM, three targets, int4", _OWN),
    Exporter(
        "optimum-intel", "optimum-intel, OpenVINO, int4",
        ("{python}", "-m", "optimum.commands.optimum_cli", "export", "openvino", "--model", "{model}", "--task",
         "image-text-to-text", "--weight-format", "int4", "--group-size", "64", "{out}"),
        ("optimum-intel[openvino]", "nncf", "pillow", "transformers<4.58"),  # it refuses newer ones
    ),
    Exporter(
        "optimum-onnx", "optimum-onnx 0.1.0, ONNX",
        ("{python}", "-m", "optimum.commands.optimum_cli", "export", "onnx", "--model", "{model}", "--task",
         "image-text-to-text", "{out}"),
        ("optimum-onnx==0.1.0", "torch==2.13.0", "onnxruntime", "pillow"),
    ),
    Exporter("llama.cpp", "llama.cpp, GGUF: its converter, twice, and Q4_0",
             ("{python}", str(HERE / "peers" / "convert_gguf.py"), "{llama}", "{model}", "{out}"),
             ("llama-cpp-python", "torch==2.13.0", "transformers", "sentencepiece")),
    Exporter("coremltools", "coremltools, encoder and decoder without a cache traced, fp16",
             ("{python}", str(HERE / "peers" / "trace_coreml.py"), "{model}", "{out}"),
             ("coremltools==9.0", "numpy<2.4", "torch==2.13.0", "transformers")),  # newer numpy breaks its tracing
)  # fmt: skip


def stages(model: str, out: str, gate: bool) -> None:
    """Export once and print the seconds of each stage as JSON: what is before the first target, targets, the gate."""
    start = time.perf_counter()
    from edgevlm.export.pipeline import ExportOptions, export_model

    marks: list[tuple[str, float]] = [("reading", start)]

    def progress(what: str, done: int, total: int) -> None:
        what = what.removesuffix(": quantize and write")
        if marks[-1][0] != what:
            marks.append((what, time.perf_counter()))

    export_model(ExportOptions(model, Path(out), tuple(TARGETS.split(",")), gate=gate), progress)
    ends = [*(began for _, began in marks[1:]), time.perf_counter()]
    print(json.dumps({name: end - began for (name, began), end in zip(marks, ends, strict=True)}))


def install(exporter: Exporter, out: Path) -> str:
    """The Python that runs it."""
    if not exporter.needs:
        return sys.executable
    folder = out / "environments" / exporter.name
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *exporter.needs], check=True, stdout=sys.stderr)
        (folder / "done").touch()
    return str(python.absolute())


def measure(exporter: Exporter, fill: Callable[[str], str], out: Path) -> dict[str, Any]:
    """Seconds, peak bytes and what it printed last; or its error."""
    shutil.rmtree(out, ignore_errors=True)
    log = out.with_suffix(".log")
    with log.open("w+") as errors, log.with_suffix(".out").open("w+") as printed:
        start = time.perf_counter()
        process = subprocess.Popen([fill(part) for part in exporter.command], stdout=printed, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for stream in (printed, errors):
            stream.seek(0)
            texts.append([line.strip() for line in stream.read().splitlines() if line.strip()])
    if process.returncode:
        return {"error": (texts[1] or texts[0] or [f"exit code {process.returncode}"])[-1][:300]}
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpu": cpu, "peak": usage.ru_maxrss * 1024, "size": size, "printed": texts[0][-1:]}


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: medians, ratios to EdgeVLM's in the same turn, and errors in their own words."""
    lines = ["| exporter | time | ratio | processor time | memory | written |", "|---|---|---|---|---|---|"]
    errors, own = [], results.get(OWN, [])
    for exporter in EXPORTERS:
        turns = results.get(exporter.name, [])
        failed = next((turn["error"] for turn in turns if "error" in turn), None)
        if failed is not None:
            errors.append(f"- {exporter.title}: {failed}")
        if failed is not None or not turns:
            continue
        keys = ("seconds", "cpu", "peak", "size")
        seconds, cpu, peak, size = (statistics.median(turn[key] for turn in turns) for key in keys)
        pairs = [a["seconds"] / b["seconds"] for a, b in zip(turns, own, strict=False) if "seconds" in b]
        ratio = f"{statistics.median(pairs):.2f}" if pairs else "-"
        amounts = f"{cpu:.1f} s | {peak / 1e6:.0f} MB | {size / 1e6:.0f} MB"
        lines.append(f"| {exporter.title} | {seconds:.1f} s | {ratio} | {amounts} |")
    parts = [turn["printed"][-1] for turn in own if turn.get("printed")]
    if parts:
        shown = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in json.loads(parts[-1]).items())
        lines += ["", f"EdgeVLM's stages in the last turn: {shown}."]
    return "\n".join(lines + (["", "What a program did not do, in its own words:", "", *errors] if errors else []))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    names = [exporter.name for exporter in EXPORTERS]
    parser.add_argument("--only", nargs="*", default=[], choices=names, metavar="NAME")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--llama-cpp", type=Path, default=Path("llama.cpp"), help="a checkout with its converter")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = [exporter for exporter in EXPORTERS if not args.only or exporter.name in args.only]
    pythons = {exporter.name: install(exporter, args.out) for exporter in chosen}
    results: dict[str, list[dict[str, Any]]] = {exporter.name: [] for exporter in chosen}
    for turn in range(args.repeat):
        for exporter in chosen[:: -1 if turn % 2 else 1]:
            out = args.out.resolve() / "files" / exporter.name
            out.parent.mkdir(exist_ok=True)
            values = {"python": pythons[exporter.name], "model": str(args.checkpoint.resolve()), "out": str(out),
                      "llama": str(args.llama_cpp.resolve())}  # fmt: skip
            results[exporter.name].append(measure(exporter, lambda part, v=values: part.format(**v), out))
            print(f"{exporter.name}: {results[exporter.name][-1]}", file=sys.stderr)
    (args.out / "export.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["stages"]:
        stages(sys.argv[2], sys.argv[3], "gate" in sys.argv[4:])
    else:
        main()
