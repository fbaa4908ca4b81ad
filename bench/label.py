"""Pictures per second of `label` beside a plain loop of `Model.answer` over the same pictures.

    python bench/label.py BUNDLE [--pictures 200] [--rounds 3] [--workers 1 2] [--max-tokens 8] [--tiles 1]

Scenes with one question, in turns: the loop with an engine that has all cores, and `label` with each number of
workers, which share them; loading and the table are counted in both. Medians over the rounds, and the median of the
ratios of neighbours. Answers have to be the same, or the script ends.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # a checkout that is not installed
QUESTION = "What is in the picture?"


def draw(folder: Path, count: int) -> list[Path]:
    """Pictures of which no two are the same."""
    command = [sys.executable, "-m", "edgevlm", "scenes", str(folder), "--count", str(count)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    found = sorted(folder.rglob("*.png"))
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in found}) == count
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--tiles", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    from edgevlm.api import load
    from edgevlm.generate.chat import AskOptions
    from edgevlm.label import label

    options = AskOptions(max_tokens=args.max_tokens, max_tiles=args.tiles)
    times: dict[str, list[float]] = {"loop": [], **{f"label, {n} workers": [] for n in args.workers}}
    with tempfile.TemporaryDirectory() as place:
        pictures = draw(Path(place) / "scenes", args.pictures)

        def loop() -> list[str]:
            with load(args.bundle, reuse=False) as model:
                return [model.answer(QUESTION, [path], options).text for path in pictures]

        def labels(workers: int) -> list[str]:
            out = Path(place) / "labels.jsonl"
            label(args.bundle, Path(place) / "scenes", QUESTION, out, options, workers=workers)
            rows = [json.loads(line) for line in out.read_text().splitlines()]
            out.unlink()
            return [row["answer"] for row in rows]

        answers = loop()  # files in memory, and an engine that was opened before
        for _ in range(args.rounds):
            for name in times:
                start = time.perf_counter()
                found = loop() if name == "loop" else labels(int(name.split()[1]))
                times[name].append(time.perf_counter() - start)
                if found != answers:
                    sys.exit(f"{name} has other answers than the loop.")
    report: dict[str, Any] = {}
    print("| | pictures per second | times the loop |\n|---|---|---|")
    for name, spent in times.items():
        speed = args.pictures / statistics.median(spent)
        ratio = statistics.median(one / other for one, other in zip(times["loop"], spent, strict=True))
        report[name] = {"per second": speed, "ratio": ratio}
        print(f"| {name} | {speed:.1f} | {ratio:.2f} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
