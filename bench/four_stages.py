"""The four stages of a bundle beside `transformers` on the same checkpoint, picture and question.

    python bench/four_stages.py CHECKPOINT [--bundle DIR ...] [--picture FILE] [--tiles 1] [--json FILE]

Every engine runs in a process of its own, one after the other, each warmed up once; figures are medians.
Without --bundle, an int4 bundle is exported first. Needs the `test` extra (torch, transformers from 5.20).
Figures of different machines do not compare: read the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # a checkout that is not installed
PICTURE = ROOT / "edgevlm" / "assets" / "pictures" / "coffee.jpg"
STAGES = ("preprocess", "encode", "prefill", "decode")  # seconds; decode is per token


def run_edgevlm(task: dict[str, Any]) -> dict[str, Any]:
    from edgevlm.bench.worker import Worker

    worker = Worker({**task, "runtime": None, "device": "cpu", "tokens": task["max_tokens"]})
    try:
        return measure(worker.ask, task["repeat"])
    finally:
        worker.close()


def run_transformers(task: dict[str, Any]) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT / "tests"))
    import torch
    from build_smolvlm import load_model, load_processor
    from PIL import Image

    from edgevlm.io.processor import peak_memory

    torch.set_num_threads(task["threads"])
    folder = Path(task["model"])
    model = load_model(folder, dtype=getattr(torch, task["dtype"]), attn_implementation="sdpa")
    processor = load_processor(folder)
    content = [{"type": "image"}, {"type": "text", "text": task["question"]}]
    split = {} if task["tiles"] is None else {"do_image_splitting": False}

    def once() -> dict[str, Any]:
        times, start = [], time.perf_counter()

        def lap() -> None:
            nonlocal start
            times.append(time.perf_counter() - start)
            start = time.perf_counter()

        messages = [{"role": "user", "content": content}]
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
        with Image.open(task["picture"]) as image:
            inputs = processor(images=[[image.convert("RGB")]], text=[prompt], return_tensors="pt", **split)
        lap()
        pixels = inputs["pixel_values"].to(model.dtype)
        features = model.get_image_features(pixels, inputs["pixel_attention_mask"], return_dict=True)
        lap()
        encoded = {"image": features}
        out = model(inputs["input_ids"], mm_encoder_outputs=encoded, use_cache=True, logits_to_keep=1)
        ids = [int(out.logits[0, -1].argmax())]
        lap()
        while len(ids) < task["max_tokens"]:  # through stop tokens, as `edgevlm bench` does
            token = torch.tensor([[ids[-1]]])
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
            ids.append(int(out.logits[0, -1].argmax()))
        lap()
        times[3] /= max(1, len(ids) - 1)
        image_tokens = int((inputs["input_ids"] == model.config.image_token_id).sum())
        stages = dict(zip(STAGES, times, strict=True))
        tokens = {"image_tokens": image_tokens, "prompt_tokens": inputs["input_ids"].shape[1]}
        return {**stages, **tokens, "ids": ids, "peak_memory": peak_memory()}

    with torch.inference_mode():
        return measure(once, task["repeat"])


def measure(once: Callable[[], dict[str, Any]], repeat: int) -> dict[str, Any]:
    """Medians of `repeat` runs after one warm-up."""
    once()
    runs = [once() for _ in range(repeat)]
    return {**runs[-1], **{stage: statistics.median(run[stage] for run in runs) for stage in STAGES}}


def child(task: dict[str, Any]) -> dict[str, Any]:
    """transformers in a fresh process, so that its memory is its own."""
    threads = str(task["threads"])
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(task)],
        stdout=subprocess.PIPE,
        env=environment,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def report(results: dict[str, dict[str, Any]], setting: str) -> str:
    """Markdown: figures per engine, then how many times as long each takes as the first."""
    head = "| engine | preprocess | encode | prefill | decode a token | image tokens | prompt | peak memory |"
    lines = [setting, "", head, "|---" * 8 + "|"]
    first = next(iter(results.values()))
    for name, r in results.items():
        times = " | ".join(f"{1000 * r[stage]:.1f} ms" for stage in STAGES)
        memory = f"{r['peak_memory'] / 1e6:.0f} MB"
        lines.append(f"| {name} | {times} | {r['image_tokens']} | {r['prompt_tokens']} | {memory} |")
    lines += ["", f"Ratio to {next(iter(results))}:", "", "| engine | " + " | ".join(STAGES) + " | memory |"]
    lines.append("|---" * 6 + "|")
    for name, r in results.items():
        ratios = [r[stage] / first[stage] for stage in STAGES] + [r["peak_memory"] / first["peak_memory"]]
        lines.append(f"| {name} | " + " | ".join(f"{ratio:.2f}x" for ratio in ratios) + " |")
    equal = {name: _agreed(r["ids"], first["ids"]) for name, r in list(results.items())[1:]}
    lines += ["", *(f"{name}: {text} as {next(iter(results))}." for name, text in equal.items())]
    return "\n".join(lines)


def _agreed(ids: list[int], others: list[int]) -> str:
    pairs = list(zip(ids, others, strict=False))
    same = next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return f"the same first {same} of {len(ids)} greedy tokens"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder")
    parser.add_argument("--bundle", action="append", default=[], help="a bundle of it; may be repeated")
    parser.add_argument("--picture", default=str(PICTURE))
    parser.add_argument("--question", default="Describe the picture in three sentences.")
    parser.add_argument("--tiles", type=int, choices=[1], help="no image splitting")
    parser.add_argument("--dtype", action="append", help="of transformers; may be repeated")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    keys = ("model", "picture", "question", "tiles", "max_tokens", "repeat", "threads")
    task = {key: getattr(args, key) for key in keys}

    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bundles = args.bundle
        if not bundles:
            bundles = [str(Path(folder) / "int4")]
            command = ["-m", "edgevlm", "export", args.model, "-o", bundles[0], "--no-gate"]
            subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        for bundle in bundles:
            results[f"edgevlm {Path(bundle).name}"] = run_edgevlm({**task, "bundle": bundle})
        for dtype in args.dtype or ["float32"]:
            results[f"transformers {dtype}"] = child({**task, "dtype": dtype})
    setting = (
        f"{Path(args.model).name}, {Path(args.picture).name}, {'one tile' if args.tiles else 'tiled'}, "
        f"{args.max_tokens} tokens, median of {args.repeat}, {args.threads} threads, {platform.machine()}"
    )
    print(report(results, setting))
    if args.json:
        Path(args.json).write_text(json.dumps({"setting": setting, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        job = json.loads(sys.argv[2])
        print(json.dumps(run_transformers(job)))
    else:
        main()
