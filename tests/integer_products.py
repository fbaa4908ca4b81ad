"""Prints how far ONNX Runtime's integer products are from exact ones: run by test_integer_products.py on several CPUs.

One line of JSON: {"native": [signed saturates here, errors without mending, errors with],
"random": by form, the largest error of products of random codes and activations in units of the exact result's size,
and for signed weights also the largest difference from the model of the saturating kernel}.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent))
from saturating_engine import saturating_product

from edgevlm.runtimes.ort.products import product_errors, session_options, signed_saturates
from edgevlm.runtimes.ort.session import import_onnxruntime

ROWS, WIDTH, COLUMNS = 7, 160, 52


def widening_product(x: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """uint8 (M, K) by uint8 (K, N) as VPMOVZXBW and VPMADDWD compute it: 16-bit factors, sums wrap at 32 bits."""
    x, codes = x.astype(np.int16).astype(np.int32), codes.astype(np.int16).astype(np.int32)
    return x @ codes


def case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations (M, K) that are whole numbers 0..255 less a zero point; codes (K, N), half of them +-127; scales."""
    rng = np.random.default_rng(seed)
    x = rng.integers(100, 256, (ROWS, WIDTH))
    x[:, :2] = 0, 255
    codes = rng.integers(-127, 128, (WIDTH, COLUMNS)).astype(np.int8)
    codes[:, ::2] = np.where(np.arange(COLUMNS // 2) % 2, 127, -127)
    return x, codes, rng.uniform(0.001, 0.01, COLUMNS).astype(np.float32)


def session(codes: np.ndarray, scales: np.ndarray, zero_point: np.ndarray | None, unsigned: bool):
    arrays = {"codes": codes, "scales": scales} | ({} if zero_point is None else {"zero": zero_point})
    node = helper.make_node("DynamicQuantizeMatMul", ["x", *arrays], ["y"], domain="com.microsoft")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", None]) for name in "xy"]
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph([node], "product", values[:1], values[1:], weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    ort = import_onnxruntime()
    return ort.InferenceSession(model.SerializeToString(), session_options(ort, unsigned))


def main() -> None:
    ort = import_onnxruntime()
    native = [signed_saturates(ort), *(product_errors(ort, session_options(ort, turned)) for turned in (False, True))]
    random: dict[str, float] = {}
    for seed, offset in ((0, 0), (1, 37)):  # the zero point of the activations
        x, codes, scales = case(seed)
        turned = codes.view(np.uint8) ^ np.uint8(128)
        exact, clipped = (x - offset) @ codes.astype(np.int64), saturating_product(x, codes)
        clipped = clipped - offset * codes.sum(0, dtype=np.int64)
        forms = {
            "int8": session(codes, scales, None, unsigned=False),
            "int8, turned": session(codes, scales, None, unsigned=True),
            "uint8": session(turned, scales, np.array(128, np.uint8), unsigned=False),
        }
        for name, form in forms.items():
            for rows in (1, ROWS):
                y = form.run(None, {"x": (x[:rows] - offset).astype(np.float32)})[0]
                # A row is 255 wide, so that an activation's step is 1.
                products = {name: exact[:rows], f"{name}, clipped": clipped[:rows]}
                for key, product in products.items():
                    error = float(np.abs(y / scales - product).max() / np.abs(exact).max())
                    random[key] = max(random.get(key, 0.0), error)
    print(json.dumps({"native": native, "random": random}))


if __name__ == "__main__":
    main()
