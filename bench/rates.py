"""The rates that this machine's kernels reach, for the floor in docs/performance.md.

    python bench/rates.py rates.json [--threads 2] [--seconds 5]

Through ONNX Runtime, as a bundle runs: 8-bit products (DynamicQuantizeMatMul) and float32 products (MatMul) of 1024
positions with a matrix as an encoder has it; and memory, by one float32 row with a matrix of 134 MB, which is a
decoder's size. The best call of all rounds, which take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgevlm.bench.device_card import card_line, device_card
from edgevlm.runtimes.ort.products import session_options, signed_saturates
from edgevlm.runtimes.ort.session import import_onnxruntime

POSITIONS, WIDTH, INNER = 1024, 768, 3072
LONG, WIDE = 4096, 8192
CALLS = 20  # of one kind in a row


def session(threads: int, operator: str, k: int, n: int, weights: dict[str, Any]) -> Any:
    """One node over `weights`; x (rows, k) to y (rows, n)."""
    ort = import_onnxruntime()
    domain = "" if operator == "MatMul" else "com.microsoft"
    node = helper.make_node(operator, ["x", *weights], ["y"], domain=domain)
    sides = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size]) for name, size in (("x", k), ("y", n))
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph([node], "rate", sides[:1], sides[1:], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = session_options(ort, signed_saturates(ort))  # exact products, as a bundle's are
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def works(threads: int) -> dict[str, tuple[float, Callable[[], Any]]]:
    """By rate: how much a call does, and the call."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (WIDTH, INNER), dtype=np.int8)
    dynamic = {"codes": codes, "scale": np.full(INNER, 1e-3, np.float32)}
    integer = session(threads, "DynamicQuantizeMatMul", WIDTH, INNER, dynamic)
    floats = session(threads, "MatMul", WIDTH, INNER, {"matrix": codes.astype(np.float32)})
    large = rng.standard_normal((LONG, WIDE)).astype(np.float32)
    token = session(threads, "MatMul", LONG, WIDE, {"matrix": large})
    many, one = (rng.standard_normal(shape).astype(np.float32) for shape in ((POSITIONS, WIDTH), (1, LONG)))
    operations = 2.0 * POSITIONS * WIDTH * INNER
    return {
        "integer": (operations, lambda: integer.run(None, {"x": many})),
        "floats": (operations, lambda: floats.run(None, {"x": many})),
        "bandwidth": (float(large.nbytes), lambda: token.run(None, {"x": one})),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each rate, at least")
    args = parser.parse_args()
    machine = card_line(device_card())
    calls = works(args.threads)
    best = dict.fromkeys(calls, 0.0)
    start = time.perf_counter()
    while time.perf_counter() - start < args.seconds * len(calls):
        for name, (amount, call) in calls.items():
            for _ in range(CALLS):
                begin = time.perf_counter()
                call()
                best[name] = max(best[name], amount / (time.perf_counter() - begin))
    args.out.write_text(json.dumps({"machine": machine, "threads": args.threads, **best}, indent=1) + "\n")
    figures = (f"{best[name] / 1e9:.1f}" for name in ("integer", "floats", "bandwidth"))
    print("{} G operations a second in 8 bits, {} G in float32, {} GB/s".format(*figures))


if __name__ == "__main__":
    main()
