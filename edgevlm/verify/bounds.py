"""The gate's bounds: one table for what an engine may do, one for what quantization may cost."""

from __future__ import annotations

from edgevlm.verify.report import Bound, Loss

# By target and by what the engine does to activations. DESIGN section 7 has the float bounds; engines that round
# activations to int8 are held to the cosine published for int8, and to half a nat between two tokens.
BOUNDS = {
    ("onnx", "float"): Bound(0.99999, 0.99999, 1e-3, 1e-5, 0.95, 0.005),
    ("onnx", "int8"): Bound(0.999, 0.998, 0.5, 0.02, 0.85, 0.01),
    ("onnx", "dynamic"): Bound(0.999, 0.99, 1.0, 0.1, 0.75, 0.02),  # one range for a whole prompt: outliers stretch it
    ("gguf", "float"): Bound(0.9999, 0.9999, 2e-2, 1e-3, 0.9, 0.005),  # fp16 GELU table, fp16 KV cache
    ("gguf", "int8"): Bound(0.999, 0.998, 0.5, 0.02, 0.85, 0.01),
    ("coreml", "float"): Bound(0.9999, 0.999, 5e-2, 1e-3, 0.9, 0.005),  # fp16 storage after every operation
    ("coreml", "int8"): Bound(0.9999, 0.999, 5e-2, 1e-3, 0.9, 0.005),  # weights only: activations stay fp16
}
# Bounds on agreement with the original model, by the coarsest weight format.
# int4 is judged by answers, where there are questions to ask.
LOSS_BOUNDS = {
    "fp32": Loss(0.99999, 0.99999, 1e-5, 0.99, 0.0),
    "fp16": Loss(0.9999, 0.9999, 1e-3, 0.95, 0.005),
    "int8": Loss(0.999, 0.99, 0.1, 0.8, 0.02),
    "int4": Loss(None, None, None, None, 0.1),
    "palette6": Loss(0.99, 0.97, 0.2, 0.7, 0.03),  # an error about three times that of int8
    "palette4": Loss(None, None, None, None, 0.1),
}


def bound_of(target: str, numerics: str) -> Bound:
    """The bound of a target; without one for dynamic int8, that of int8 counts."""
    return BOUNDS.get((target, numerics)) or BOUNDS[target, "int8"]
