"""What a server adds to an answer's first token, over the same model asked in this process.

    python bench/serve.py BUNDLE [--repeat 20] [--threads 2] [--side 512] [--json FILE]

A server of its own process and `edgevlm.load` in this one are asked in turns, each time about another picture that
neither has seen, by a request with the picture inside (PNG, base64, a new connection each time, and one that is kept).
Times are from having the picture's file to the first piece of text; medians, the median of the differences, and, for a
machine that does other things, too, the difference of the fastest. "Beside the stages" is a request's time less what
the server says that preparing, encoding and prefill took.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # a checkout that is not installed
QUESTION = "What is in the picture?"


def picture(seed: int, side: int) -> bytes:
    """A file that nobody has seen: smooth colours, as a photo has, with some noise."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).resize((side, side))
    noisy = np.asarray(coarse, np.int16) + random.integers(-4, 5, (side, side, 3), np.int16)
    stream = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def first_of_server(client: Any, content: bytes) -> tuple[float, float]:
    """Seconds to the first piece of text, and how many of them are none of the model's stages."""
    start = time.perf_counter()
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}}, {"type": "text", "text": QUESTION}]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 4, "stream": True}
    found = stages = 0.0
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise RuntimeError(chunk["error"]["message"])
                if not found and chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                    found = time.perf_counter() - start
            if '"timings"' in line:
                timings = json.loads(line[6:])["timings"]
                stages = (timings["preprocess_ms"] + timings["encode_ms"] + timings["prompt_ms"]) / 1000
    return found, found - stages


def first_of_model(model: Any, content: bytes) -> float:
    from edgevlm.generate.chat import AskOptions

    start = time.perf_counter()
    stream = model.ask(QUESTION, [content], AskOptions(max_tokens=4, max_tiles=1))
    next(iter(stream), None)
    found = time.perf_counter() - start
    _ = stream.answer
    return found


def measure(args: argparse.Namespace, address: str) -> dict[str, Any]:
    import httpx

    from edgevlm.api import load

    rows = []
    with load(args.bundle, threads=args.threads) as model, httpx.Client(base_url=address, timeout=600) as kept:
        while kept.get("/health").status_code != 200:
            time.sleep(0.1)
        model.warm_up()
        for turn in range(args.repeat + 2):  # the first two are for warming up
            files = [picture(3 * turn + k, args.side) for k in range(3)]
            first = first_of_model(model, files[0])
            over, beside = first_of_server(kept, files[1])
            with httpx.Client(base_url=address, timeout=600, verify=False) as new:
                anew, _ = first_of_server(new, files[2])
            if turn >= 2:
                rows.append((first, over, anew, beside))
    columns = [[1000 * value for value in column] for column in zip(*rows, strict=True)]
    own, over, anew, beside = columns
    return {
        "in process, ms": statistics.median(own),
        "server, ms": statistics.median(over),
        "server, new connection, ms": statistics.median(anew),
        "added, ms": statistics.median(b - a for a, b in zip(own, over, strict=True)),
        "added, new connection, ms": statistics.median(b - a for a, b in zip(own, anew, strict=True)),
        "added, of the fastest, ms": min(over) - min(own),
        "beside the stages, ms": statistics.median(beside),
        "beside the stages, fastest": min(beside),
        "picture, bytes": len(picture(0, args.side)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    command = [sys.executable, "-m", "edgevlm", "serve", args.bundle, "--port", "0", "--threads", str(args.threads)]
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        address = server.stderr.readline().partition(" at ")[2].partition(";")[0]
        found = measure(args, address)
    finally:
        server.terminate()
        server.communicate(timeout=60)
    for name, value in found.items():
        print(f"{name:>28}: {value:.2f}" if isinstance(value, float) else f"{name:>28}: {value}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
