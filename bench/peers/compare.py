"""EdgeVLM beside other programs on the same machine, checkpoint, picture and prompts: ratios of one interleaved run.

    python tests/build_smolvlm.py 256m smolvlm-256m
    python bench/peers/compare.py smolvlm-256m --out peers [--only NAME ...] [--repeat 7] [--threads 2]

Any checkpoint serves that EdgeVLM exports and whose pictures `transformers_eager.py` can lay out; shapes.py makes two.
Each peer is a script beside this one and runs in an environment of its own, which is set up once. Files are prepared
once, too; every finished step is kept, so that a stopped run goes on, and what failed is tried again. To make a peer's
files anew, remove OUT/files/NAME. All peers are loaded at the same time, and all but the one that works are stopped
(SIGSTOP). In each round every peer does the same piece of work, forwards in one round and backwards in the next. A
ratio is a peer's time over EdgeVLM's in the same round; the table has medians over the rounds. A peer that cannot do a
piece of work is listed with its own error.
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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PICTURE = ROOT / "edgevlm" / "assets" / "pictures" / "coffee.jpg"
OWN, REFERENCE = "edgevlm_onnx", "transformers_eager"
SIDE = 512  # pixels of a tile where an encoder takes any size
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
PORTABLE = ("numpy", "pillow", "tokenizers")  # of portable.py
OPENVINO = ("openvino", "nncf", *PORTABLE)
PROGRAMS = (
    Program("edgevlm_onnx.py", "EdgeVLM, onnxruntime, int4"),
    Program("edgevlm_latency.py", "EdgeVLM, onnxruntime, int4, preset latency"),
    Program("edgevlm_llama.py", "EdgeVLM, llama.cpp, int4"),
    Program("llamacpp.py", "llama.cpp, Q4_0 and an fp16 encoder"),
    Program("openvino_runtime.py", "OpenVINO, fp32", OPENVINO),
    Program("openvino_int8.py", "OpenVINO, NNCF int8", OPENVINO),
    Program("openvino_int4.py", "OpenVINO, NNCF int8 encoder, int4 decoder", OPENVINO),
    Program("genai.py", "onnxruntime-genai, int4", GENAI),
    Program("transformers_eager.py", "transformers, fp32"),
    Program("transformers_compiled.py", "transformers, fp32, torch.compile"),
    Program("transformersjs.mjs", "transformers.js in Node, EdgeVLM's files", npm=("@huggingface/transformers@4",)),
    Program("mnn.py", "MNN, int8 weights", ("MNN", *PORTABLE)),
)  # fmt: skip


@dataclass
class Place:
    """Where a peer's environment and files are, and how its script is started."""

    program: Program
    out: Path
    environments: Path
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
        names = (package.split("=")[0].strip("@").replace("/", "_") for package in packages)
        return self.environments.resolve() / "-".join(names)

    @property
    def python(self) -> list[str]:
        if self.program.npm:
            return ["node"]
        return [str(self.installed / "bin" / "python") if self.program.needs else sys.executable]

    def install(self) -> None:
        """The peer's environment, once."""
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
        """Seconds and peak memory of writing the peer's files, once; or what went wrong."""
        done = self.folder / "prepared.json"
        if done.exists():
            found: dict[str, Any] = json.loads(done.read_text())
            return found
        try:
            self.install()
        except (OSError, subprocess.CalledProcessError) as error:
            return {"error": f"its environment could not be set up: {error}"[:300]}
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.program.npm and not (self.folder / "bundle").is_symlink():
            (self.folder / "bundle").symlink_to(self.out.resolve() / "files" / OWN / "bundle")
        command = [*self.python, self.program.script, "prepare", str(checkpoint.resolve()), str(self.folder.resolve())]
        ran = subprocess.run(command, cwd=HERE, env=self.environment, capture_output=True, text=True)
        (self.folder / "prepare.log").write_text(ran.stderr)
        if ran.returncode:
            return {"error": _last(ran.stderr)}
        found = json.loads(ran.stdout.splitlines()[-1])
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
    """What a process said in the end; of one that started another, what that one said."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and "CalledProcessError" not in line]
    return lines[-1][:300] if lines else "it ended without a word"


def write_work(checkpoint: Path, out: Path) -> None:
    """The tile and the token ids that every peer is given."""
    out.mkdir(parents=True, exist_ok=True)
    side = json.loads((checkpoint / "config.json").read_text())["vision_config"].get("image_size", SIDE)
    np.save(out / "tile.npy", np.asarray(Image.open(PICTURE).convert("RGB").resize((side, side))))
    text = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "README.md", ROOT / "docs" / "running.md"))
    ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    (out / "ids.json").write_text(json.dumps(ids[:1000]))


def warm(places: list[Place], repeat: int) -> list[dict[str, Any]]:
    """Of each place: times of each piece of work, or its error; the features of one picture; memory."""
    workers = [place.start() for place in places]
    found: list[dict[str, Any]] = [{"load": worker.loaded, "times": {}} for worker in workers]
    try:
        for place, worker, own in zip(places, workers, found, strict=True):
            features = place.folder / "features.npy"
            reply = worker.ask({"do": "encode", "changed": False, "features": str(features.resolve())})
            own["features"] = None if "error" in reply else str(features)
            own["ids"] = worker.ask({"do": "decode", "tokens": 80, "count": COUNT, "changed": False}).get("ids")
        for work, task in WORK.items():
            for turn in range(repeat + 1):  # the first is for warming up
                for worker, own in list(zip(workers, found, strict=True))[:: -1 if turn % 2 else 1]:
                    times = own["times"].setdefault(work, [])
                    if isinstance(times, str):
                        continue
                    reply = worker.ask(task)
                    if "error" in reply:
                        own["times"][work] = reply["error"]
                    elif turn:
                        times.append(reply["seconds"])
                    own["peak"] = reply.get("peak")
            print(f"{work}: done", file=sys.stderr)
    finally:
        for worker in workers:
            worker.close()
    return found


def cold(places: list[Place], repeat: int) -> list[dict[str, list[float]]]:
    """Of each place: seconds from a process's start to the first token of one tile and 80 tokens; its peak memory."""
    found: list[dict[str, list[float]]] = [{"seconds": [], "peak": []} for _ in places]
    for turn in range(repeat):
        for place, own in list(zip(places, found, strict=True))[:: -1 if turn % 2 else 1]:
            start = time.perf_counter()
            worker = place.start()
            replies = [worker.ask({"do": "encode"}), worker.ask({"do": "prefill", "tokens": 80})]
            seconds = time.perf_counter() - start
            worker.close()
            if not any("error" in reply for reply in replies):
                own["seconds"].append(seconds)
                own["peak"].append(replies[-1]["peak"])
    return found


def prepare(
    programs: Sequence[Program], checkpoint: Path, out: Path, environments: Path, threads: int
) -> tuple[dict[str, dict[str, Any]], list[Place]]:
    """What `Place.prepare` says of each program, and the places of those that can be started."""
    write_work(checkpoint, out)
    made, places = {}, []
    for program in programs:
        place = Place(program, out, environments, threads)
        made[program.name] = place.prepare(checkpoint)
        print(f"{program.name}: {made[program.name]}", file=sys.stderr)
        if program.npm or "error" not in made[program.name]:
            places.append(place)
    return made, places


def cosines(warm: dict[str, Any]) -> dict[str, float | None]:
    """Of each program's features with those of transformers."""
    features = {name: found.pop("features", None) for name, found in warm.items()}
    return {name: cosine(own, features.get(REFERENCE)) for name, own in features.items()}


def cosine(features: str | None, reference: str | None) -> float | None:
    """The least cosine of an image token's features with the reference's."""
    if features is None or reference is None:
        return None
    a, b = np.load(features).astype(np.float64), np.load(reference).astype(np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def table(programs: Sequence[Program], results: dict[str, Any]) -> str:
    """Markdown: median seconds, and in how many of EdgeVLM's times each peer does the same; no empty columns."""
    heads = ("", *WORK, "cold start", "memory", "cosine", "export", "its memory")
    rows = []
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
        rows.append(cells)
    filled = [i for i in range(len(heads)) if any(row[i] != "-" for row in rows)]
    shown = [[row[i] for i in filled] for row in (heads, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in shown]
    lines.insert(1, "|---" * len(filled) + "|")
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
    parser.add_argument("--environments", type=Path, metavar="DIR", help="those of another run")
    parser.add_argument("--only", nargs="*", default=[], choices=[program.name for program in PROGRAMS], metavar="NAME")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    programs = [program for program in PROGRAMS if not args.only or program.name in (*args.only, OWN)]
    environments = args.environments or args.out / "environments"
    prepared, places = prepare(programs, args.checkpoint, args.out, environments, args.threads)
    names = [place.program.name for place in places]
    results: dict[str, Any] = {"threads": args.threads, "prepared": prepared}
    results["warm"] = dict(zip(names, warm(places, args.repeat), strict=True))
    results["cold"] = dict(zip(names, cold(places, args.repeat), strict=True))
    results["cosine"] = cosines(results["warm"])
    (args.out / "peers.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(programs, results))


if __name__ == "__main__":
    main()
