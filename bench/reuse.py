"""What is not computed twice: the first token of a second question about a picture, and of a new process with a cache.

    python bench/reuse.py BUNDLE [--repeat 5] [--threads 2] [--picture FILE] [--json FILE]

Each repeat asks two questions about one picture, as whole picture alone and in tiles, behind a question about another
one; then a conversation's second turn. Processes of their own ask the first question with an empty folder of features
and with a full one. Times are from the question to its first token; medians, and the median of the ratios of pairs.
"""

from __future__ import annotations

import argparse
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
PICTURES = ROOT / "edgevlm" / "assets" / "pictures"
FIRST, SECOND = "What is on the table?", "Is the cup full or empty?"


def first_token(stream: Any, start: float) -> float:
    """Seconds since `start`; the rest of the answer is computed and not counted."""
    next(iter(stream), None)
    found = time.perf_counter() - start
    _ = stream.answer
    return found


def questions(args: argparse.Namespace, tiles: int | None) -> list[tuple[float, float, float]]:
    """Seconds to the first token of a first and a second question, and of a conversation's second turn."""
    from edgevlm.api import load
    from edgevlm.generate.chat import AskOptions

    options, found = AskOptions(max_tokens=16, max_tiles=tiles), []
    with load(args.bundle, args.runtime, args.threads) as model:
        model.warm_up()
        for turn in range(args.repeat + 1):  # the first is for warming up
            model.trim("caches")
            model.answer("Hello.", [PICTURES / "rocket.jpg"], AskOptions(max_tokens=1, max_tiles=1))
            times = []
            for question in (FIRST, SECOND):
                start = time.perf_counter()
                times.append(first_token(model.ask(question, [args.picture], options), start))
            chat = model.chat()
            chat.answer(FIRST, [args.picture], options)
            start = time.perf_counter()
            times.append(first_token(chat.ask(SECOND, (), options), start))
            if turn:
                found.append((times[0], times[1], times[2]))
    return found


def one_process(task: dict[str, Any]) -> dict[str, float]:
    """In the child: seconds from the question to the first token, and from the import on."""
    start = time.perf_counter()
    from edgevlm.api import load
    from edgevlm.generate.chat import AskOptions

    with load(task["bundle"], task["runtime"], task["threads"], cache_folder=task["folder"]) as model:
        asked = time.perf_counter()
        options = AskOptions(max_tokens=1, max_tiles=task["tiles"])
        token = first_token(model.ask(FIRST, [task["picture"]], options), asked)
        timings = model.answer(FIRST, [task["picture"]], options).timings
    return {"first token": token, "whole": token + asked - start, "prompt": timings.prompt_tokens}


def processes(args: argparse.Namespace, tiles: int | None) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Without features on disk, and with them, in turns."""
    found = []
    for turn in range(args.repeat + 1):
        with tempfile.TemporaryDirectory() as folder:
            task = {"bundle": args.bundle, "runtime": args.runtime, "threads": args.threads, "tiles": tiles}
            command = [sys.executable, __file__, "--child"]
            words = json.dumps({**task, "picture": str(args.picture), "folder": folder})
            pair = [json.loads(subprocess.check_output([*command, words])) for _ in range(2)]
        if turn:
            found.append((pair[0], pair[1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--runtime")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--picture", type=Path, default=PICTURES / "coffee.jpg")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    report: dict[str, Any] = {}
    print("| | without | with | ratio |\n|---|---|---|---|")

    def row(name: str, pairs: list[tuple[float, float]]) -> None:
        one, other = (statistics.median(pair[place] for pair in pairs) for place in (0, 1))
        ratio = statistics.median(a / b for a, b in pairs)
        report[name] = {"without": one, "with": other, "ratio": ratio}
        print(f"| {name} | {1000 * one:.0f} ms | {1000 * other:.1f} ms | {ratio:.1f} |", flush=True)

    for words, tiles in (("one tile", 1), ("tiled", None)):
        times = questions(args, tiles)
        row(f"{words}: second question", [(a, b) for a, b, _ in times])
        row(f"{words}: second turn", [(a, c) for a, _, c in times])
        children = processes(args, tiles)
        row(f"{words}: new process", [(a["first token"], b["first token"]) for a, b in children])
        row(f"{words}: the same with loading", [(a["whole"], b["whole"]) for a, b in children])
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(one_process(json.loads(sys.argv[2]))))
    else:
        main()
