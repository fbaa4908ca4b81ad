"""EdgeVLM beside other programs on the same machine, checkpoint, picture and prompts: ratios of one interleaved run.

    python tests/build_smolvlm.py 256m smolvlm-256m
    python bench/peers/compare.py smolvlm-256m --out peers [--only NAME ...] [--repeat 7] [--threads 2]

Each peer is a script beside this one and runs in an environment of its own below OUT, which is set up once. Files are
prepared once, too; every finished step is kept, so that a stopped run goes on. All peers are loaded at the same time,
and all but the one that works are stopped (SIGSTOP). In each round every peer does the same piece of work, forwards in
one round and backwards in the next. A ratio is a peer's time over EdgeVLM's in the same round; the table has medians
over the rounds. A peer that cannot do a piece of work is listed with its own error.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PICTURE = ROOT / "edgevlm" / "assets" / "pictures" / "coffee.jpg"
OWN = "edgevlm_onnx"
COUNT = 32  # tokens of one measurement of decode
WORK: dict[str, dict[str, Any]] = {
    "encode a tile": {"do": "encode"},
    "prefill 80": {"do": "prefill", "tokens": 80},
    "prefill 900": {"do": "prefill", "tokens": 900},
    "decode at 80": {"do": "decode", "tokens": 80, "count": COUNT},
    "decode at 900": {"do": "decode", "tokens": 900, "count": COUNT},
}


@dataclass(frozen=True)
class Program:
    """A peer: its script, and what pip or npm installs for it. Without any, EdgeVLM's own environment serves."""

    script: str
    title: str
    needs: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return Path(self.script).stem


GENAI = ("onnxruntime-genai", "onnx", "onnx_ir", "torch==2.13.0", "transformers")
OPENVINO = ("openvino", "nncf", "numpy", "pillow")
PROGRAMS = (
    Program("edgevlm_onnx.py", "EdgeVLM, onnxruntime, int4"),
    Program("edgevlm_llama.py", "EdgeVLM, llama.cpp, int4"),
    Program("llamacpp.py", "llama.cpp, Q4_0 and an fp16 encoder"),
    Program("openvino_runtime.py", "OpenVINO, fp32", OPENVINO),
    Program("openvino_int8.py", "OpenVINO, NNCF int8", OPENVINO),
    Program("openvino_int4.py", "OpenVINO, NNCF int8 encoder, int4 decoder", OPENVINO),
    Program("genai.py", "onnxruntime-genai, int4", GENAI),
    Program("transformers_eager.py", "transformers, fp32"),
    Program("transformers_compiled.py", "transformers, fp32, torch.compile"),
    Program("transformersjs.mjs", "transformers.js in Node, EdgeVLM's files", npm=("@huggingface/transformers@4",)),
    Program("mnn.py", "MNN, int8 weights", ("MNN", "numpy")),
)  # fmt: skip


@dataclass
class Place:
    """Where a peer's environment and files are, and how its script is started."""

    program: Program
    out: Path
    threads: int
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        shared = {"EDGEVLM_PYTHON": sys.executable, "ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(self.threads))
        self.environment = {**os.environ, **shared, **threads, "NODE_ENVIRONMENT": str(self.installed)}
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed is compiled: a cold start reads that

    @property
    def folder(self) -> Path:
        return self.out / "files" / self.program.name

    @property
    def installed(self) -> Path:
        packages = self.program.needs or self.program.npm
        return (
            self.out
            / "environments"
            / "-".join(package.split("=")[0].strip("@").replace("/", "_") for package in packages)
        )

    @property
    def python(self) -> list[str]:
        if self.program.npm:
            return ["node"]
        return [str(self.installed / "bin" / "python") if self.program.needs else sys.executable]

    def install(self) -> None:
        done = self.installed / "done"
        if not (self.program.needs or self.program.npm) or done.exists():
            return
        self.installed.mkdir(parents=True, exist_ok=True)
        if self.program.npm:
            (self.installed / "package.json").write_text("{}")
            install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", *self.program.npm]
        else:
            subprocess.run([sys.executable, "-m", "venv", self.installed], check=True)
            install = [*self.python, "-m", "pip", "install", "--quiet", *self.program.needs]
        subprocess.run(install, check=True, cwd=self.installed, stdout=sys.stderr)
        done.touch()

    def prepare(self, checkpoint: Path) -> dict[str, Any]:
        """Seconds and peak memory of writing the peer's files, once."""
        done = self.folder / "prepared.json"
        if done.exists():
            found: dict[str, Any] = json.loads(done.read_text())
            return found
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.program.npm:
            (self.folder / "bundle").symlink_to(self.out.resolve() / "files" / OWN / "bundle")
        command = [*self.python, self.program.script, "prepare", str(checkpoint.resolve()), str(self.folder.resolve())]
        ran = subprocess.run(command, cwd=HERE, env=self.environment, capture_output=True, text=True)
        (self.folder / "prepare.log").write_text(ran.stderr)
        found = json.loads(ran.stdout.splitlines()[-1]) if ran.returncode == 0 else {"error": _last(ran.stderr)}
        done.write_text(json.dumps(found))
        return found

    def start(self) -> Worker:
        folder, work = self.folder.resolve(), self.out.resolve()
        return Worker([*self.python, self.program.script, "serve", str(folder), str(self.threads), str(work)], self)


class Worker:
    """A loaded peer, stopped while it is not asked."""

    def __init__(self, command: list[str], place: Place) -> None:
        self.log = place.folder / "serve.log"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                cwd=HERE,
                env=place.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.loaded = self._read()

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
            return self._read()
        except BrokenPipeError:
            return {"error": _last(self.log.read_text())}
        finally:
            self._process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        reply: dict[str, Any] = json.loads(line) if line else {"error": _last(self.log.read_text())}
        return reply


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it ended without a word"


def write_work(checkpoint: Path, out: Path) -> None:
    """The tile and the token ids that every peer is given."""
    from PIL import Image
    from tokenizers import Tokenizer

    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "tile.npy", np.asarray(Image.open(PICTURE).convert("RGB").resize((512, 512))))
    text = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "README.md", ROOT / "docs" / "running.md"))
    ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    (out / "ids.json").write_text(json.dumps(ids[:1000]))


def warm(places: list[Place], repeat: int) -> dict[str, dict[str, Any]]:
    """Times of each piece of work of each peer, or its error; the features of one picture; memory."""
    workers = {place.program.name: place.start() for place in places}
    found: dict[str, dict[str, Any]] = {name: {"load": worker.loaded, "times": {}} for name, worker in workers.items()}
    try:
        for place in places:
            name, features = place.program.name, place.folder / "features.npy"
            reply = workers[name].ask({"do": "encode", "changed": False, "features": str(features.resolve())})
            found[name]["features"] = None if "error" in reply else str(features)
            reply = workers[name].ask({"do": "decode", "tokens": 80, "count": COUNT, "changed": False})
            found[name]["ids"] = reply.get("ids")
        for work, task in WORK.items():
            for turn in range(repeat + 1):  # the first is for warming up
                for name in list(workers)[:: -1 if turn % 2 else 1]:
                    times = found[name]["times"].setdefault(work, [])
                    if isinstance(times, str):
                        continue
                    reply = workers[name].ask(task)
                    if "error" in reply:
                        found[name]["times"][work] = reply["error"]
                    elif turn:
                        times.append(reply["seconds"])
                    found[name]["peak"] = reply.get("peak")
            print(f"{work}: done", file=sys.stderr)
    finally:
        for worker in workers.values():
            worker.close()
    return found


def cold(places: list[Place], repeat: int) -> dict[str, dict[str, list[float]]]:
    """Seconds from the start of a process to the first token of one tile and 80 tokens, and its peak memory then."""
    found: dict[str, dict[str, list[float]]] = {place.program.name: {"seconds": [], "peak": []} for place in places}
    for turn in range(repeat):
        for place in places[:: -1 if turn % 2 else 1]:
            start = time.perf_counter()
            worker = place.start()
            replies = [worker.ask({"do": "encode"}), worker.ask({"do": "prefill", "tokens": 80})]
            seconds = time.perf_counter() - start
            worker.close()
            if not any("error" in reply for reply in replies):
                found[place.program.name]["seconds"].append(seconds)
                found[place.program.name]["peak"].append(replies[-1]["peak"])
    return found


def cosine(features: str | None, reference: str | None) -> float | None:
    """The least cosine of an image token's features with the reference's."""
    if features is None or reference is None:
        return None
    a, b = np.load(features).astype(np.float64), np.load(reference).astype(np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def table(programs: list[Program], results: dict[str, Any]) -> str:
    """Markdown: median seconds, and in how many of EdgeVLM's times each peer does the same."""
    heads = ("", *WORK, "cold start", "memory", "cosine", "export", "its memory")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    errors: list[str] = []
    own = results["warm"].get(OWN, {"times": {}})
    for program in programs:
        name, cells = program.name, [program.title]
        found = results["warm"].get(name)
        if found is None:
            errors.append(f"- {program.title}: {results['prepared'][name].get('error')}")
            continue
        for work in WORK:
            cells.append(_cell(found["times"].get(work, []), own["times"].get(work, [])))
            if cells[-1] == "-":
                errors.append(f"- {program.title}, {work}: {found['times'][work]}")
        start = results["cold"].get(name, {"seconds": [], "peak": []})
        cells.append(_cell(start["seconds"], results["cold"].get(OWN, {"seconds": []})["seconds"]))
        cells.append(f"{statistics.median(start['peak']) / 1e6:.0f} MB" if start["peak"] else "-")
        likeness = results["cosine"][name]
        cells.append("-" if likeness is None else f"{likeness:.5f}")
        made = results["prepared"][name]
        cells.append(f"{made['seconds']:.1f} s" if made.get("seconds") else "-")
        cells.append(f"{made['peak'] / 1e6:.0f} MB" if made.get("peak") else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines + (["", "What a program did not do, in its own words:", "", *errors] if errors else []))


def _cell(times: list[float] | str, own: list[float] | str) -> str:
    if isinstance(times, str) or not times:
        return "-"
    middle = statistics.median(times)
    shown = f"{middle:.2f} s" if middle >= 1 else f"{1000 * middle:.1f} ms"
    if isinstance(own, str) or len(own) != len(times):
        return shown
    return f"{shown} ({statistics.median(a / b for a, b in zip(times, own, strict=True)):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[], choices=[program.name for program in PROGRAMS], metavar="NAME")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    programs = [program for program in PROGRAMS if not args.only or program.name in (*args.only, OWN)]
    write_work(args.checkpoint, args.out)
    results: dict[str, Any] = {"threads": args.threads, "prepared": {}}
    places = []
    for program in programs:
        place = Place(program, args.out, args.threads)
        place.install()
        results["prepared"][program.name] = made = place.prepare(args.checkpoint)
        print(f"{program.name}: {made}", file=sys.stderr)
        if program.npm or "error" not in made:
            places.append(place)
    results["warm"] = warm(places, args.repeat)
    results["cold"] = cold(places, args.repeat)
    reference = results["warm"].get("transformers_eager", {}).get("features")
    results["cosine"] = {name: cosine(found.get("features"), reference) for name, found in results["warm"].items()}
    (args.out / "peers.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(programs, results))


if __name__ == "__main__":
    main()
