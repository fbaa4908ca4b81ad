"""Whether ONNX Runtime's integer kernels multiply exactly on this CPU, found by a trial.

On x86 with AVX2 but without VNNI, the kernel for uint8 activations and int8 weights adds pairs of products in 16 bits
and saturates (onnxruntime#6004). The same codes as uint8 with zero point 128 go to a kernel that adds in 32 bits: exact
on every CPU, and where signed weights are exact, too, 2.5 times as slow. So bundles hold signed codes, and a session
converts them when it is made, on the CPUs that need it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgevlm.runtimes.protobuf import encode

ROWS, COLUMNS, WIDTH = 5, 36, 64  # of activations, of weights, and what both share: no multiples of a kernel's tile
BLOCK = 32
EXACT = 1e-6  # of the result: a handful of float32 roundings, at most 6e-8 each


def signed_saturates(ort: Any) -> bool:
    """Whether this CPU's kernels get signed weights wrong."""
    return max(product_errors(ort, session_options(ort, unsigned=False)).values()) > EXACT


def session_options(ort: Any, unsigned: bool) -> Any:
    """unsigned: convert signed weights to uint8 when the session is made, for a CPU where `signed_saturates`.

    Not everywhere: ONNX Runtime converts them for VNNI, too, and gets DequantizeLinear with a scale per channel wrong.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised; printed, too, they would be in colour on the user's stream
    if unsigned:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def product_errors(ort: Any, options: Any) -> dict[str, float]:
    """By operator: the largest relative error of a session's products against exact integer arithmetic.

    The largest codes meet the largest activations, so that a kernel that can saturate does.
    """
    session = ort.InferenceSession(_model(), options, providers=["CPUExecutionProvider"])
    errors = dict.fromkeys(_FORMS, 0.0)
    for rows in (1, ROWS):  # a single row has kernels of its own
        found = session.run(list(_FORMS), {"x": np.ones((rows, WIDTH), np.float32)})
        for name, y in zip(_FORMS, found, strict=True):
            exact = _codes(name).sum(0, dtype=np.int64)
            errors[name] = max(errors[name], float(np.abs(y / exact - 1).max()))
    return errors


# Bits of a code, by operator and by output.
_FORMS = {"DynamicQuantizeMatMul": 8, "MatMulNBits 4": 4, "MatMulNBits 8": 8}


def _codes(name: str) -> np.ndarray[Any, np.dtype[np.int8]]:
    """(K, N): the largest code and the smallest, in turn."""
    high, low = (127, -127) if _FORMS[name] == 8 else (7, -8)
    return np.broadcast_to(np.where(np.arange(COLUMNS) % 2, low, high).astype(np.int8), (WIDTH, COLUMNS))


def _model() -> bytes:
    """An ONNX file (onnx.proto has the numbers of its fields) of one node for each form, all with scale 1."""
    nodes, tensors, outputs = b"", b"", b""
    for name, bits in _FORMS.items():
        operator = name.split()[0]
        codes, attributes = _codes(name), b""
        blocks = [COLUMNS, WIDTH // BLOCK]
        if operator == "MatMulNBits":
            codes = (codes.T.astype(np.int16) + (1 << bits - 1)).astype(np.uint8)
            codes = codes[:, ::2] | codes[:, 1::2] << 4 if bits == 4 else codes
            codes = codes.reshape(*blocks, -1)
            values = {"K": WIDTH, "N": COLUMNS, "bits": bits, "block_size": BLOCK, "accuracy_level": 4}
            for key, value in values.items():
                attributes += encode(5, encode(1, key) + encode(3, value) + encode(20, 2))
        scales = np.ones(blocks if operator == "MatMulNBits" else COLUMNS, np.float32)
        inputs = ("x", f"{name} codes", f"{name} scales")
        nodes += encode(1, b"".join(encode(1, item) for item in inputs) + encode(2, name) + encode(4, operator)
                        + attributes + encode(7, "com.microsoft"))  # fmt: skip
        tensors += encode(5, _tensor(inputs[1], codes)) + encode(5, _tensor(inputs[2], scales))
        outputs += encode(12, _value(name, COLUMNS))
    graph = nodes + encode(2, "products") + tensors + encode(11, _value("x", WIDTH)) + outputs
    opsets = encode(8, encode(2, 21)) + encode(8, encode(1, "com.microsoft") + encode(2, 1))
    return encode(1, 10) + encode(7, graph) + opsets


def _tensor(name: str, array: np.ndarray[Any, Any]) -> bytes:
    kind = {"float32": 1, "uint8": 2, "int8": 3}[array.dtype.name]
    dims = b"".join(encode(1, size) for size in array.shape)
    return dims + encode(2, kind) + encode(8, name) + encode(9, array.tobytes())


def _value(name: str, columns: int) -> bytes:
    """Float32 of (any number of rows, columns)."""
    shape = encode(1, encode(2, "rows")) + encode(1, encode(1, columns))
    return encode(1, name) + encode(2, encode(1, encode(1, 1) + encode(2, shape)))
