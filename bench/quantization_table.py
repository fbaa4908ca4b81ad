"""One table for a model: {fp32, fp16, int8, int4 by rounding, int4 calibrated, mixed} x {size, score, KL, ...}.

    python bench/quantization_table.py default --out table-default
    python bench/quantization_table.py smolvlm-256m --out table-256m --tiles 1 --questions 10

Exports one bundle per row (each in a process of its own), then measures it on every target's engine: bytes, score on
generated scenes, KL divergence and token agreement with the original along its own answers on held-out scenes, and the
four stages. Every figure is a file under --out: a second run measures what is missing. Writes table.json and table.md.
CoreML off macOS is an evaluator: it answers like a device, but its times are its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # a checkout that is not installed

BUDGET = "{half-way}"  # between the bytes of int4 and int8
ROWS = {
    "fp32": ["--quantize", "fp32"],
    "fp16": ["--quantize", "fp16"],
    "int8": ["--quantize", "int8"],
    "int4-rtn": ["--quantize", "int4"],
    "int4-calibrated": ["--quantize", "int4", "--calibrate", "default"],
    "mixed": ["--quantize", "int4", "--calibrate", "default", "--budget", BUDGET],
}
STAGES = ("preprocess", "encode", "prefill", "decode")


class Table:
    """The bundles and figures of one model, each made once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, Path(args.out)
        self.targets: list[str] = args.targets.split(",")
        self.rows: list[str] = args.rows.split(",")
        self.missing: list[str] = []

    def make(self) -> dict[str, Any]:
        from edgevlm.runtimes import DEFAULTS

        self.out.mkdir(parents=True, exist_ok=True)
        self._settle()
        self.rows = [row for row in self.rows if self._export(row)]
        if not self.rows:
            sys.exit(f"No row could be exported: {'; '.join(self.missing)}.")
        cells: dict[str, Any] = {}
        for engine in (DEFAULTS[target] for target in self.targets):
            timed = self._once(f"{engine}.bench", self.rows, lambda engine=engine: self._bench(engine))
            subjects = {Path(subject["bundle"]).name: subject for subject in timed["subjects"]}
            for row in self.rows:
                subject = subjects[row]
                fidelity = self._once(f"{row}.{engine}.fidelity", [row], lambda r=row, e=engine: self._fidelity(r, e))
                score = self._once(f"{row}.{engine}.score", [row], lambda r=row, e=engine: self._score(r, e))
                cells[f"{row} on {engine}"] = {
                    "row": row, "engine": subject["engine"], "runtime": engine, "bytes": subject["bytes"]["runtime"],
                    "score": {name: score[name] for name in ("score", "low", "high", "questions")}, **fidelity,
                    "warm": {stage: subject["warm"][stage]["median"] for stage in STAGES},
                    "image_tokens": subject["image_tokens"], "peak_memory": subject["peak_memory"],
                }  # fmt: skip
        from edgevlm.bench.device_card import device_card

        return {
            "model": self.args.model,
            "device": device_card(),
            "settings": vars(self.args),
            "missing": self.missing,
            "cells": cells,
        }

    def _settle(self) -> None:
        """The figures of one folder are made one way: refuse to mix them."""
        settings = {key: value for key, value in vars(self.args).items() if key not in ("out", "gate")}
        path = self.out / "settings.json"
        if path.exists() and json.loads(path.read_text()) != settings:
            sys.exit(f"'{self.out}' holds figures of other settings ({path}): choose another --out.")
        path.write_text(json.dumps(settings, indent=1) + "\n")

    def _once(self, name: str, rows: list[str], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The figure's file, made if it is not there or older than a bundle that it is about."""
        path = self.out / f"{name}.json"
        newest = max((self._folder(row) / "manifest.json").stat().st_mtime for row in rows)
        if not path.exists() or path.stat().st_mtime < newest:
            print(f"{name} ...", file=sys.stderr, flush=True)
            beside = path.with_suffix(".part")
            beside.write_text(json.dumps(measure(), indent=1) + "\n")
            beside.replace(path)
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def _folder(self, row: str) -> Path:
        return self.out / "bundles" / row

    def _export(self, row: str) -> bool:
        """Whether the row's bundle is there now; a row that this edgevlm cannot make is noted."""
        from edgevlm.commands.export import export

        words = list(ROWS[row])
        known = {flag for parameter in export.params for flag in parameter.opts}
        if lacking := [word for word in words if word.startswith("--") and word not in known]:
            self.missing.append(f"{row}: this edgevlm has no {lacking[0]}")
            return False
        folder = self._folder(row)
        if folder.exists():
            return True
        if BUDGET in words:
            ends = [self._needed(row) if self._folder(row).exists() else 0 for row in ("int4-rtn", "int8")]
            if not all(ends):
                self.missing.append(f"{row}: its budget lies between int4-rtn and int8, which are not both there")
                return False
            words[words.index(BUDGET)] = str(sum(ends) // 2)
        print(f"export {row} ...", file=sys.stderr, flush=True)
        code = "import sys; sys.path.append(sys.argv.pop(1)); from edgevlm.cli import main; main(sys.argv[1:])"
        command = [sys.executable, "-P", "-c", code, str(ROOT), "export", self.args.model, "-o", str(folder), *words]
        command += ["--target", self.args.targets]
        command += ["--preset", self.args.preset] if row not in ("fp32", "fp16") else []  # nothing to choose
        command += [] if self.args.gate else ["--no-gate"]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        failed = folder.with_name(f"{row}.failed")
        if done.returncode == 1 and failed.exists():  # a missed bound is part of what this table is to show
            shutil.move(failed, folder)
        elif done.returncode:
            self.missing.append(f"{row}: {(done.stderr.strip().splitlines() or ['export failed'])[-1]}")
            return False
        return True

    def _needed(self, row: str) -> int:
        """Bytes that a device needs of the row's bundle, for the engine that needs most: what --budget counts."""
        from edgevlm.bench.measure import runtime_bytes
        from edgevlm.runtimes import DEFAULTS

        return max(runtime_bytes(self._bundle(row), DEFAULTS[target])["runtime"] for target in self.targets)

    def _slow(self, engine: str) -> int:
        """How many times fewer questions an engine gets: a large model takes the evaluator minutes for each."""
        from edgevlm.report.measure import is_evaluator
        from edgevlm.verify.runtime import is_large

        return 40 if is_evaluator(engine) and is_large(self._bundle(self.rows[0]).manifest.spec.vision) else 1

    def _bundle(self, row: str) -> Any:
        from edgevlm.bundle.manifest import open_bundle

        return open_bundle(self._folder(row))

    def _bench(self, engine: str) -> dict[str, Any]:
        """All rows in turns; once and briefly where that takes minutes."""
        from edgevlm.bench.measure import BenchOptions, Subject, bench

        slow = self._slow(engine) > 1
        options = BenchOptions(
            repeat=1 if slow else self.args.repeat,
            cold=1,
            tokens=4 if slow else 32,
            tiles=self.args.tiles,
            threads=self.args.threads,
        )
        return bench([Subject(self._folder(row), engine) for row in self.rows], options)

    def _score(self, row: str, engine: str) -> dict[str, Any]:
        from edgevlm.report.measure import scenes_score

        count = max(1, self.args.questions // self._slow(engine))
        return scenes_score(self._bundle(row), engine, count, self.args.tiles, self.args.threads)

    @cached_property
    def _lessons(self) -> tuple[list[Any], list[Any]]:
        """Held-out questions and what the original says, computed on its own weights in float32."""
        from edgevlm.checkpoint.checkpoint import open_checkpoint
        from edgevlm.checkpoint.families import read_model
        from edgevlm.runtimes.eager import eager_runtime
        from edgevlm.verify.fidelity import held_out, original_answers

        print("the original's answers ...", file=sys.stderr, flush=True)
        _, weights = read_model(open_checkpoint(self.args.model))
        questions = held_out(self.args.pictures)
        bundle = self._bundle(self.rows[0])
        original = eager_runtime(bundle, weights)
        return questions, original_answers(bundle, original, questions, self.args.tokens, self.args.tiles)

    def _fidelity(self, row: str, engine: str) -> dict[str, Any]:
        from edgevlm.runtimes import open_runtime
        from edgevlm.verify.fidelity import measure_fidelity

        questions, lessons = self._lessons
        count = max(4, len(lessons) // self._slow(engine))
        bundle = self._bundle(row)
        runtime = open_runtime(bundle, engine, threads=self.args.threads)
        try:
            return asdict(measure_fidelity(bundle, runtime, questions[:count], lessons[:count], self.args.tiles))
        finally:
            runtime.close()


def markdown(table: dict[str, Any]) -> str:
    """One table per engine, and what calibration recovers."""
    from edgevlm.bench.device_card import card_line
    from edgevlm.io.console import seconds, size

    cells = list(table["cells"].values())
    lines = [f"# {table['model']}", "", f"{card_line(table['device'])}, load {table['device']['load']}.", ""]
    for engine in dict.fromkeys(cell["runtime"] for cell in cells):
        mine = [cell for cell in cells if cell["runtime"] == engine]
        head = ("weights", "size", f"score of {mine[0]['score']['questions']}", "KL, nats",
                f"same token of {mine[0]['positions']}", *STAGES[:3], "decode a token", "memory")  # fmt: skip
        lines += [f"## {engine}: {mine[0]['engine']}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for cell in mine:
            score = cell["score"]
            times = " | ".join(seconds(cell["warm"][stage]) for stage in STAGES)
            memory = size(cell["peak_memory"]) if cell["peak_memory"] else "?"
            lines.append(
                f"| {cell['row']} | {size(cell['bytes'])} | {score['score']:.1%} ({score['low']:.0%} to "
                f"{score['high']:.0%}) | {cell['kl']:.3g} | {cell['agreement']:.1%} | {times} | {memory} |"
            )
        share = recovered({cell["row"]: cell["kl"] for cell in mine})
        if share is not None:
            lines += ["", f"int4 calibrated recovers {share:.0%} of what rounding to nearest loses in KL."]
        if "evaluator" in mine[0]["engine"]:
            lines += ["", "Times are the evaluator's own: they say nothing of a device."]
        lines.append("")
    lines += [f"- {line}" for line in table["missing"]]
    return "\n".join(lines).rstrip() + "\n"


def recovered(kl: dict[str, float]) -> float | None:
    """The share of int4's loss by rounding that calibration takes back; fp32 on the same engine loses nothing to it."""
    if not {"fp32", "int4-rtn", "int4-calibrated"} <= set(kl) or kl["int4-rtn"] <= kl["fp32"]:
        return None
    return (kl["int4-rtn"] - kl["int4-calibrated"]) / (kl["int4-rtn"] - kl["fp32"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder, Hub id or 'default'")
    parser.add_argument("--out", required=True, help="folder for bundles and figures; run again to go on")
    parser.add_argument("--targets", default="onnx,gguf,coreml")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--gate", action="store_true", help="run the gate in every export")
    parser.add_argument("--questions", type=int, default=400, help="of the score; fewer where that takes minutes each")
    parser.add_argument("--pictures", type=int, default=24, help="held out; two questions each, for KL and tokens")
    parser.add_argument("--tokens", type=int, default=24, help="most tokens of an answer of the original")
    parser.add_argument("--tiles", type=int, help="most tiles of a picture")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args(arguments)
    if unknown := [row for row in args.rows.split(",") if row not in ROWS]:
        parser.error(f"there is no row {unknown[0]}: choose from {', '.join(ROWS)}")
    from edgevlm.errors import EdgeVLMError

    try:
        table = Table(args).make()
    except EdgeVLMError as error:
        sys.exit(f"Error: {error}")
    text = markdown(table)
    (Path(args.out) / "table.json").write_text(json.dumps(table, indent=1) + "\n")
    (Path(args.out) / "table.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
