"""What a quantization costs by skill: a table of scores on held-out scenes, in Markdown.

    python bench/skills_table.py --out FOLDER                                fp32, int8 and int4 of the shipped model
    python bench/skills_table.py --out FOLDER --aware M --teacher T          and int4 of M, which was trained through it

Every row is an export and `edgevlm eval --suite scenes` of it, on onnxruntime. Each score is a file under --out: a
second run measures what is missing. Brackets are 95 % intervals (Wilson).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CODE = "import sys; sys.path.append(sys.argv.pop(1)); from edgevlm.cli import main; main(sys.argv[1:])"


def edgevlm(*words: str) -> None:
    subprocess.run([sys.executable, "-P", "-c", CODE, str(ROOT), *words], check=True, stdout=subprocess.DEVNULL)


def score(out: Path, data: Path, name: str, model: str, quantize: str, preset: str) -> dict[str, Any]:
    """The eval JSON of `model` in that form."""
    path = out / f"{name}.json"
    if not path.exists():
        bundle = out / f"{name}.bundle"
        if not bundle.exists():
            words = ["--quantize", quantize, "--preset", preset, "--no-gate"]
            edgevlm("export", model, "--target", "onnx", "-o", str(bundle), *words)
        edgevlm("eval", str(bundle), "--suite", "scenes", "--data", str(data), "--json", str(path))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def table(rows: dict[str, dict[str, Any]]) -> str:
    first = next(iter(rows.values()))
    skills = list(first["skills"])
    lines = [f"| skill (questions) | {' | '.join(rows)} |", "|---" * (len(rows) + 1) + "|"]
    for skill in skills:
        cells = [found["skills"][skill] for found in rows.values()]
        lines.append(f"| {skill} ({cells[0]['n']}) | " + " | ".join(map(_cell, cells)) + " |")
    total = " | ".join(f"{found['score']:.1%}" for found in rows.values())
    return "\n".join([*lines, f"| all ({first['questions']}) | {total} |"])


def _cell(cell: dict[str, float]) -> str:
    return f"{cell['score']:.1%} ({100 * cell['low']:.0f} to {100 * cell['high']:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="default")
    parser.add_argument("--aware", help="the model after training through the quantizer: its int4 is a row, too")
    parser.add_argument("--teacher")
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--preset", default="balanced")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data = args.out / "test"
    if not data.exists():
        edgevlm("scenes", str(data), "--split", "test", "--count", str(args.pictures))
    wanted = [("teacher, fp32", args.teacher, "fp32")] if args.teacher else []
    wanted += [(kind, args.model, kind) for kind in ("fp32", "int8", "int4")]
    wanted += [("int4+QAD", args.aware, "int4")] if args.aware else []
    rows = {
        name: score(args.out, data, name.replace(", ", "-"), model, quantize, args.preset)
        for name, model, quantize in wanted
    }
    text = table(rows)
    (args.out / "skills.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
