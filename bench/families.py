"""Export and the four stages of several families at the widths of published models, a few layers deep.

    python bench/families.py [NAME ...] [--quantize int4] [--repeat 5] [--json FILE]

Weights are noise, so answers mean nothing, and times are those of the few layers that there are, of the head and of the
embedding. Memory is the export's, beside twice the largest tensor in float32. Needs the `test` extra. Figures of
different machines do not compare: read the ratios.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests"), str(ROOT)]  # a checkout that is not installed
from alone import export_alone  # noqa: E402
from four_stages import PICTURE, STAGES, run_edgevlm  # noqa: E402
from wide import WIDE, write_wide  # noqa: E402

COLUMNS = ("model", "export", "memory", "2 x largest", *STAGES[:-1], "decode a token", "image tokens", "prompt")


def measure(name: str, quantize: str, repeat: int, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        shapes = write_wide(place / "wide", name)
        exported = export_alone(place / "wide", place / "out", quantize, "no-gate")
        task = {
            "bundle": str(place / "out"), "picture": str(PICTURE), "question": "Describe the picture.", "tiles": 1,
            "max_tokens": 16, "repeat": repeat, "threads": threads,
        }  # fmt: skip
        return run_edgevlm(task) | exported | {"largest": 4 * max(map(math.prod, shapes.values()))}


def row(name: str, found: dict[str, Any]) -> str:
    times = (f"{1000 * found[stage]:.1f} ms" for stage in STAGES)
    memory = (f"{found['peak'] / 1e6:.0f} MB", f"{2 * found['largest'] / 1e6:.0f} MB")
    cells = (name, f"{found['seconds']:.1f} s", *memory, *times, found["image_tokens"], found["prompt_tokens"])
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(WIDE)}; all of them without")
    parser.add_argument("--quantize", default="int4", choices=["fp16", "int8", "int4"])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - WIDE.keys()):
        parser.error(f"{unknown[0]!r} is not one of {', '.join(WIDE)}")
    results: dict[str, dict[str, Any]] = {}
    print(f"{args.quantize}, onnxruntime, {args.threads} threads, {platform.machine()}, median of {args.repeat}\n")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    for name in args.names or WIDE:
        results[name] = measure(name, args.quantize, args.repeat, args.threads)
        print(row(name, results[name]), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
