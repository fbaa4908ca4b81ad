"""From nothing to the first token: where the time goes, and what the memory is, on two engines with equal bits.

    python tests/build_smolvlm.py 256m smolvlm-256m
    python bench/start.py smolvlm-256m --out start [--repeat 7] [--threads 2] [--json FILE]

The checkpoint is exported once for onnxruntime and llama.cpp, below OUT: both hold the same integers and scales. Every
start is a fresh process with the files in the system's cache, engines in turns, forwards and backwards; a ratio is the
median over pairs. Memory is taken in processes of its own, in which one thing is done after the other: what each adds
that is the process's own, and what it maps of files, which the system can take back. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # a checkout that is not installed
PICTURE = ROOT / "edgevlm" / "assets" / "pictures" / "coffee.jpg"
QUESTION = "Describe the picture in three sentences."
ENGINES = {"onnxruntime": "onnxruntime", "llama.cpp": "llama_cpp"}  # and their packages


def first_token(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds between the parent's start of this process and the first token, as `edgevlm run` gets there."""
    laps = {"process": time.monotonic() - task["started"]}

    def lap(name: str) -> None:
        laps[name] = time.monotonic() - task["started"] - sum(laps.values())

    import edgevlm.commands.run  # noqa: F401
    from edgevlm.bundle.manifest import open_bundle
    from edgevlm.generate.opening import open_pipeline

    lap("import")
    bundle = open_bundle(task["bundle"])
    lap("bundle")
    pipeline = open_pipeline(bundle, task["engine"], threads=task["threads"])
    lap("open")
    stream = pipeline.ask([task["picture"]], QUESTION, max_tiles=1)
    lap("prepare")
    next(iter(stream))
    lap("encode and prefill")
    first = sum(laps.values())
    timings = stream.answer.timings
    laps["encode"] = timings.encode
    return {**laps, "first token": first, "peak": timings.peak_memory}


def held() -> Counter[str]:
    """Bytes of this process in memory: "" for its own, and by the name of each mapped file."""
    found: Counter[str] = Counter()
    name = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if head := re.match(r"[0-9a-f]+-[0-9a-f]+ (?:\S+ ){3}\S+ *(.*)", line):
            name = head[1].rpartition("/")[2] if head[1].startswith("/") else ""
        elif line.startswith("Rss:"):
            size = 1024 * int(line.split()[1])
            found[name] += size
        elif line.startswith("Anonymous:") and name:  # pages of a file that were written to
            found[name] -= (own := 1024 * int(line.split()[1]))
            found[""] += own
    return found


def memory(task: dict[str, Any]) -> dict[str, Any]:
    """What each part adds, in bytes: [of its own, mapped]; and which files are mapped in the end."""
    parts: dict[str, list[int]] = {}
    before: Counter[str] = Counter()

    def part(name: str) -> None:
        nonlocal before
        now = held()
        parts[name] = [now[""] - before[""], (now.total() - now[""]) - (before.total() - before[""])]
        before = now

    import importlib

    import numpy as np

    from edgevlm.bundle.manifest import open_bundle
    from edgevlm.generate.loop import Pipeline
    from edgevlm.inputs.layout import merge
    from edgevlm.io.processor import peak_memory
    from edgevlm.runtimes import open_runtime

    bundle = open_bundle(task["bundle"])
    importlib.import_module(ENGINES[task["engine"]])
    part("Python, numpy, the engine's library")
    runtime = open_runtime(bundle, task["engine"], threads=task["threads"])
    encoder, decoder = runtime.encoder, runtime.decoder
    part("weights")
    pipeline = Pipeline(bundle, runtime)
    part("tokenizer")
    prompt = pipeline.prepare([task["picture"]], QUESTION, max_tiles=1)
    part("the question, prepared")
    features = encoder.encode(prompt.views)
    part("encode")
    embeds = merge(decoder.embed(prompt.ids), prompt.layout, features)
    token = int(np.argmax(decoder.forward(embeds, prompt.layout)))
    part("prefill")
    for _ in range(8):
        token = int(np.argmax(decoder.step(token)))
    part("decode")
    files = {name: size for name, size in before.most_common(7) if name}
    return {"parts": parts, "files": files, "peak": peak_memory()}


def child(do: str, **task: Any) -> dict[str, Any]:
    threads = str(task["threads"])
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled
    task["started"] = time.monotonic()
    command = [sys.executable, __file__, "--child", do, json.dumps(task)]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def report(starts: dict[str, list[dict[str, float]]], memories: dict[str, dict[str, Any]]) -> str:
    """Two tables in Markdown."""
    first, *_ = starts
    lines = ["| | " + " | ".join(starts) + " |", "|---" * (1 + len(starts)) + "|"]
    for lap in starts[first][0]:
        cells = []
        for runs in starts.values():
            ratio = statistics.median(run[lap] / own[lap] for run, own in zip(runs, starts[first], strict=True))
            middle = statistics.median(run[lap] for run in runs)
            shown = f"{middle / 1e6:.0f} MB" if lap == "peak" else f"{1000 * middle:.0f} ms"
            cells.append(shown if runs is starts[first] else f"{shown} ({ratio:.2f})")
        lines.append(f"| {lap} | " + " | ".join(cells) + " |")
    lines += ["", "Memory of its own + mapped, MB:", "", *lines[:2]]
    for part in memories[first]["parts"]:
        cells = [" + ".join(f"{size / 1e6:.0f}" for size in found["parts"][part]) for found in memories.values()]
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    peaks = [found["peak"] / 1e6 for found in memories.values()]
    lines.append("| peak | " + " | ".join(f"{peak:.0f} ({peak / peaks[0]:.2f})" for peak in peaks) + " |")
    for name, found in memories.items():
        mapped = ", ".join(f"{file} {size / 1e6:.0f}" for file, size in found["files"].items())
        lines += ["", f"Mapped by {name}, MB: {mapped}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    bundle = args.out.resolve() / "bundle"
    if not bundle.exists():
        command = ["-m", "edgevlm", "export", str(args.checkpoint.resolve()), "-o", str(bundle), "--no-gate"]
        subprocess.run([sys.executable, *command, "--target", "onnx,gguf"], cwd=ROOT, check=True, stdout=sys.stderr)
    task = {"bundle": str(bundle), "picture": str(PICTURE), "threads": args.threads}
    starts: dict[str, list[dict[str, float]]] = {engine: [] for engine in ENGINES}
    for turn in range(args.repeat + 1):  # the first is for warming up
        for engine in list(ENGINES)[:: -1 if turn % 2 else 1]:
            found = child("first_token", **task, engine=engine)
            if turn:
                starts[engine].append(found)
    memories = {engine: child("memory", **task, engine=engine) for engine in ENGINES}
    print(report(starts, memories))
    if args.json:
        args.json.write_text(json.dumps({"starts": starts, "memory": memories}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps({"first_token": first_token, "memory": memory}[sys.argv[2]](json.loads(sys.argv[3]))))
    else:
        main()
