"""EdgeVLM beside other programs on the shapes of Qwen3-VL-2B and LFM2-VL-450M, by noise: `compare.py` for each.

    python bench/peers/shapes.py --out shapes [--shape NAME ...] [--only NAME ...] [--repeat 7] [--threads 2]
    python bench/peers/shapes.py --out shapes --write    # only the checkpoints, for compare.py and other scripts

Weights are seeded noise at the published widths. LFM2-VL-450M is whole. Qwen3-VL-2B is made twice, with few layers per
part; both depths are loaded at the same time and take their turns, and in each round the whole model's time is

    time at the lower depth + (layers of the whole - lower depth) * (difference of the times / difference of the depths)

since layers of one kind cost the same: the encoder's for encoding, the decoder's for the rest. What no layer does
(embedding, head, projectors, of which both depths have all) is in both times. A piece of work whose times do not grow
with depth is noise, and has no figure. Memory, start and export of so few layers are not the whole model's, and left
out; the cosine is that of the higher depth. Needs the `test` extra; figures go to OUT/shapes.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compare

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]  # a checkout that is not installed
PROGRAMS = ("edgevlm_onnx", "edgevlm_llama", "llamacpp", "openvino_int4", "transformers_eager")


@dataclass(frozen=True)
class Shape:
    """layers: of the published encoder and decoder. depths: of the checkpoints' parts; without any, one is whole."""

    name: str
    layers: tuple[int, int]
    depths: tuple[int, int] | None = None

    def variants(self) -> dict[str, int | None]:
        """Layers of each part by checkpoint; None is the whole."""
        slug = self.name.lower()
        return {f"{slug}-{depth}-layers": depth for depth in self.depths} if self.depths else {slug: None}

    def whole(self, work: str, shallow: Sequence[float] | str, deep: Sequence[float] | str) -> list[float] | str:
        """Seconds of each round of the whole model, from those of both depths; or why there are none."""
        if isinstance(shallow, str) or isinstance(deep, str):
            return shallow if isinstance(shallow, str) else str(deep)
        assert self.depths
        low, high = self.depths
        if shallow and statistics.median(deep) <= statistics.median(shallow):
            return f"{high} layers take no longer than {low}: too noisy to scale"
        layers = self.layers[0 if work.startswith("encode") else 1]
        return [a + (layers - low) * (b - a) / (high - low) for a, b in zip(shallow, deep, strict=True)]


SHAPES = (Shape("Qwen3-VL-2B", (24, 28), (4, 8)), Shape("LFM2-VL-450M", (12, 16)))


def write_checkpoint(folder: Path, shape: Shape, depth: int | None) -> None:
    """Once, and whole or not at all."""
    from wide import write_wide

    if folder.exists():
        return
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    tower = {"depth": depth, "deepstack_visual_indexes": [0, 1, 2]}  # as many levels as published
    parts = {"vision_config": tower, "text_config": {"num_hidden_layers": depth}} if depth else {}
    write_wide(partial, shape.name, **parts)
    partial.rename(folder)


def measure(
    shape: Shape, programs: list[compare.Program], out: Path, environments: Path, repeat: int, threads: int
) -> dict[str, Any]:
    """What `compare.py` writes, of the whole model; and the times at each depth."""
    variants = list(shape.variants())
    made, places = {}, []
    for variant in variants:
        made[variant], more = compare.prepare(
            programs, out / "checkpoints" / variant, out / variant, environments, threads
        )
        places += more
    warm: dict[str, dict[str, Any]] = {variant: {} for variant in variants}
    for place, found in zip(places, compare.warm(places, repeat), strict=True):
        warm[place.out.name][place.program.name] = found
    last = variants[-1]
    results = {
        "threads": threads, "layers": shape.layers, "depths": shape.depths, "prepared": made[last], "warm": warm[last],
        "cold": {}, "cosine": compare.cosines(warm[last]),
    }  # fmt: skip
    if not shape.depths:
        names = [place.program.name for place in places]
        return results | {"cold": dict(zip(names, compare.cold(places, repeat), strict=True))}
    return results | scaled(shape, made[variants[0]], made[last], warm[variants[0]], warm[last])


def scaled(
    shape: Shape, first: dict[str, Any], last: dict[str, Any], shallow: dict[str, Any], deep: dict[str, Any]
) -> dict[str, Any]:
    """ "prepared" and "warm" of the whole model, of programs that took both depths."""
    whole: dict[str, Any] = {}
    for name in shallow.keys() & deep.keys():
        times = [found[name]["times"] for found in (shallow, deep)]
        whole[name] = {
            "times": {work: shape.whole(work, *(each[work] for each in times)) for work in times[0]},
            "depths": times,
        }
    errors = {name: {"error": (first[name] | last[name]).get("error")} for name in last}
    return {"prepared": errors, "warm": {name: whole[name] for name in last if name in whole}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [program.name for program in compare.PROGRAMS]
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", nargs="*", default=[], choices=[shape.name for shape in SHAPES], metavar="NAME")
    parser.add_argument("--only", nargs="*", default=PROGRAMS, choices=names, metavar="NAME", help=" ".join(names))
    parser.add_argument("--environments", type=Path, metavar="DIR", help="those of another run")
    parser.add_argument("--write", action="store_true", help="only the checkpoints, into OUT/checkpoints")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    programs = [program for program in compare.PROGRAMS if program.name in (*args.only, compare.OWN)]
    file = args.out / "shapes.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for shape in (shape for shape in SHAPES if not args.shape or shape.name in args.shape):
        for variant, depth in shape.variants().items():
            write_checkpoint(args.out / "checkpoints" / variant, shape, depth)
        if args.write:
            continue
        results[shape.name] = found = measure(
            shape, programs, args.out, args.environments or args.out / "environments", args.repeat, args.threads
        )
        file.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{shape.name}\n\n{compare.table(programs, found)}\n", flush=True)


if __name__ == "__main__":
    main()
