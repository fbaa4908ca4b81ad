"""MIL operations in numpy, after the definitions in coremltools' reference of the iOS 15 to iOS 18 operation
sets (https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html).

Floating-point arrays come in and go out as float32; the evaluator rounds each result to the type it is stored
in. Sums are accumulated in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Inputs = dict[str, Any]  # an array per input, a list of arrays where the operation takes several
_SCORES = 1 << 22  # attention scores computed at once: bounds memory for long sequences


def linear(i: Inputs) -> Array:
    out: Array = i["x"] @ i["weight"].T
    return out + i["bias"] if "bias" in i else out


def matmul(i: Inputs) -> Array:
    x = np.swapaxes(i["x"], -1, -2) if _flag(i, "transpose_x") else i["x"]
    y = np.swapaxes(i["y"], -1, -2) if _flag(i, "transpose_y") else i["y"]
    out: Array = x @ y
    return out


def conv(i: Inputs) -> Array:
    """2-D convolution, (B, C, H, W); explicit or no padding, no dilation: what edgevlm emits."""
    x, weight = i["x"], i["weight"]
    pad_type = str(i.get("pad_type", "valid"))
    if pad_type not in ("valid", "custom") or np.any(np.asarray(i.get("dilations", 1)) != 1):
        raise NotImplementedError(f"conv with pad_type {pad_type} or dilations")
    if pad_type == "custom" and np.any(i["pad"]):
        top, bottom, left, right = (int(p) for p in i["pad"])
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    sy, sx = (int(s) for s in i.get("strides", (1, 1)))
    groups = int(i.get("groups", 1))
    outs, (_, per_group, ky, kx) = weight.shape[0], weight.shape
    windows = np.lib.stride_tricks.sliding_window_view(x, (ky, kx), axis=(2, 3))[:, :, ::sy, ::sx]
    batch, _, rows, columns = windows.shape[:4]
    result = np.empty((batch, outs, rows * columns), np.float32)
    for group in range(groups):
        part = windows[:, group * per_group : (group + 1) * per_group]
        flat = part.transpose(0, 1, 4, 5, 2, 3).reshape(batch, per_group * ky * kx, rows * columns)
        these = slice(group * outs // groups, (group + 1) * outs // groups)
        kernel = weight[these].reshape(-1, per_group * ky * kx)
        for item in range(batch):  # two-dimensional products, which numpy hands to BLAS
            result[item, these] = (flat[item].T @ kernel.T).T
    if "bias" in i:
        result += i["bias"][:, None]
    return result.reshape(batch, outs, rows, columns)


def layer_norm(i: Inputs) -> Array:
    x, axes = i["x"], tuple(int(a) % i["x"].ndim for a in i.get("axes", range(i["x"].ndim)))
    centred = x - x.mean(axes, keepdims=True)
    variance = np.square(centred).mean(axes, keepdims=True)
    out: Array = centred / np.sqrt(variance + np.float32(i.get("epsilon", 1e-5)))
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    if "gamma" in i:
        out = out * i["gamma"].reshape(shape)
    return out + i["beta"].reshape(shape) if "beta" in i else out


def attention(i: Inputs) -> Array:
    """scaled_dot_product_attention: softmax(q k^T / sqrt(E) + mask) v over any leading axes."""
    q, k, v, mask = i["query"], i["key"], i["value"], i.get("attn_mask")
    lead = q.shape[:-2]
    scale = np.float32(q.shape[-1] ** -0.5)
    if mask is not None:
        if mask.dtype == np.bool_:
            mask = np.where(mask, np.float32(0), np.float32(-np.inf))
        mask = np.broadcast_to(mask, (*lead, q.shape[-2], k.shape[-2]))
    out = np.empty((*lead, q.shape[-2], v.shape[-1]), np.float32)
    rows = max(1, _SCORES // max(1, k.shape[-2]))
    for index in np.ndindex(*lead):
        for start in range(0, q.shape[-2], rows):
            part = slice(start, start + rows)
            scores = (q[index][part] * scale) @ k[index].T
            out[index][part] = _softmax(scores if mask is None else scores + mask[index][part], -1) @ v[index]
    return out


def _softmax(x: Array, axis: int) -> Array:
    weights: Array = np.exp(x - x.max(axis, keepdims=True))
    weights /= weights.sum(axis, keepdims=True)
    return weights


def gelu(i: Inputs) -> Array:
    x, mode = i["x"], str(i.get("mode", "EXACT"))
    if mode == "TANH_APPROXIMATION":
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
        return np.asarray(np.float32(0.5) * x * (1 + np.tanh(inner)))
    if mode == "SIGMOID_APPROXIMATION":
        return np.asarray(x * _sigmoid(np.float32(1.702) * x))
    return np.asarray(np.float32(0.5) * x * (1 + erf(x / np.float32(math.sqrt(2)))))


def erf(x: Array) -> Array:
    """Abramowitz and Stegun 7.1.26: absolute error under 1.5e-7, far below fp16's spacing."""
    t = 1 / (1 + 0.3275911 * np.abs(x).astype(np.float64))
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return (np.sign(x) * (1 - poly * np.exp(-np.square(x, dtype=np.float64)))).astype(np.float32)


def _sigmoid(x: Array) -> Array:
    out: Array = 1 / (1 + np.exp(-x))
    return out


def cast(i: Inputs) -> Array:
    kinds = {"fp16": np.float32, "fp32": np.float32, "int32": np.int32, "bool": np.bool_, "int16": np.int16,
             "uint16": np.uint16, "int8": np.int8, "uint8": np.uint8}  # fmt: skip
    out: Array = i["x"].astype(kinds[str(i["dtype"])])
    return out


def reshape(i: Inputs) -> Array:
    """A 0 in `shape` keeps that axis, as in ONNX; at most one -1."""
    shape = [i["x"].shape[axis] if size == 0 else int(size) for axis, size in enumerate(i["shape"])]
    out: Array = i["x"].reshape(shape)
    return out


def slices(i: Inputs) -> tuple[slice | int, ...]:
    """begin, end, stride and masks of slice_by_index and slice_update as a numpy index."""
    begin, end, shape = i["begin"], i["end"], i["x"].shape

    def mask(name: str, axis: int) -> bool:
        return name in i and bool(i[name][axis])

    index: list[slice | int] = []
    for axis, size in enumerate(shape):
        stride = int(i["stride"][axis]) if "stride" in i else 1
        first: int | None = int(begin[axis])
        last: int | None = int(end[axis])
        if mask("squeeze_mask", axis):
            index.append(int(begin[axis]))
            continue
        if mask("begin_mask", axis):
            first = None
        if mask("end_mask", axis):
            last = None
        if stride == 1 and last is not None and not -size <= last <= size:
            raise IndexError(f"slice end {last} is outside axis {axis} of size {size}")
        index.append(slice(first, last, stride))
    return tuple(index)


def slice_by_index(i: Inputs) -> Array:
    out: Array = i["x"][slices(i)]
    return out


def slice_update(i: Inputs) -> Array:
    """A changed copy; the evaluator updates a state in place where no other operation reads the old value."""
    out: Array = i["x"].copy()
    out[slices(i)] = i["update"].reshape(out[slices(i)].shape)
    return out


def split(i: Inputs) -> tuple[Array, ...]:
    axis = int(i["axis"])
    if "split_sizes" in i:
        return tuple(np.split(i["x"], np.cumsum(i["split_sizes"])[:-1], axis))
    return tuple(np.split(i["x"], int(i["num_splits"]), axis))


def _reduce(function: Callable[..., Any]) -> Callable[[Inputs], Array]:
    def run(i: Inputs) -> Array:
        axes = tuple(int(a) for a in i["axes"]) if "axes" in i else None
        return np.asarray(function(i["x"], axis=axes, keepdims=_flag(i, "keep_dims")))

    return run


def _flag(i: Inputs, name: str) -> bool:
    return name in i and bool(i[name])


def blockwise_shift_scale(i: Inputs) -> Array:
    """scale * (data - offset), a scale per block; the block size is data.shape / scale.shape."""
    data: Array = i["data"].astype(np.float32)
    if "offset" in i:
        _blocks(data, i["offset"])[...] -= _one_per_block(i["offset"])
    _blocks(data, i["scale"])[...] *= _one_per_block(i["scale"])
    return data


def _blocks(x: Array, values: Array) -> Array:
    """A view of x with two axes for each: blocks, as many as there are values, and places in one."""
    out: Array = x.reshape(
        [n for size, count in zip(x.shape, values.shape, strict=True) for n in (count, size // count)]
    )
    return out


def _one_per_block(values: Array) -> Array:
    out: Array = values.astype(np.float32).reshape([n for count in values.shape for n in (count, 1)])
    return out


def lut_to_dense(i: Inputs) -> Array:
    """Scalar palettization: indices (K axes), lut (K axes of groups, entries, 1)."""
    indices, lut = i["indices"], i["lut"].astype(np.float32)
    if lut.shape[-1] != 1:
        raise NotImplementedError("vector palettization")
    index: list[Array] = []
    for axis, size in enumerate(indices.shape):
        groups = np.arange(size) // (size // lut.shape[axis])
        index.append(groups.reshape([-1 if a == axis else 1 for a in range(indices.ndim)]))
    out: Array = lut[(*index, indices.astype(np.intp), 0)]
    return out


def affine_dequantize(i: Inputs) -> Array:
    data, axis = i["quantized_data"], int(i["axis"])
    shape = [-1 if a == axis else 1 for a in range(data.ndim)]

    def along(x: Array) -> Array:
        return x.astype(np.float32).reshape(shape) if x.ndim else x.astype(np.float32)

    return np.asarray(along(i["scale"]) * (data.astype(np.float32) - along(i["zero_point"])))


CONSTEXPR: dict[str, Callable[[Inputs], Array]] = {
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_affine_dequantize": affine_dequantize,
}

# Results that share memory with their first input, and results that only move values and need no rounding.
VIEWS = frozenset({"identity", "reshape", "transpose", "expand_dims", "squeeze", "split", "slice_by_index"})
MOVES = VIEWS | {"concat", "stack", "tile", "shape", "gather", "slice_update"}

OPS: dict[str, Callable[[Inputs], Any]] = {
    "linear": linear,
    "matmul": matmul,
    "conv": conv,
    "layer_norm": layer_norm,
    "scaled_dot_product_attention": attention,
    "softmax": lambda i: _softmax(i["x"], int(i.get("axis", -1))),
    "gelu": gelu,
    "silu": lambda i: i["x"] * _sigmoid(i["x"]),
    "sigmoid": lambda i: _sigmoid(i["x"]),
    "tanh": lambda i: np.tanh(i["x"]),
    "softplus": lambda i: np.maximum(i["x"], 0) + np.log1p(np.exp(-np.abs(i["x"]))),
    "erf": lambda i: erf(i["x"]),
    "relu": lambda i: np.maximum(i["x"], 0),
    "exp": lambda i: np.exp(i["x"]),
    "abs": lambda i: np.abs(i["x"]),
    "square": lambda i: np.square(i["x"]),
    "sqrt": lambda i: np.sqrt(i["x"]),
    "rsqrt": lambda i: 1 / np.sqrt(i["x"] + np.float32(i.get("epsilon", 0))),
    "inverse": lambda i: 1 / (i["x"] + np.float32(i.get("epsilon", 0))),
    "add": lambda i: i["x"] + i["y"],
    "sub": lambda i: i["x"] - i["y"],
    "mul": lambda i: i["x"] * i["y"],
    "real_div": lambda i: i["x"] / i["y"],
    "pow": lambda i: np.power(i["x"], i["y"]),
    "maximum": lambda i: np.maximum(i["x"], i["y"]),
    "minimum": lambda i: np.minimum(i["x"], i["y"]),
    "equal": lambda i: i["x"] == i["y"],
    "less": lambda i: i["x"] < i["y"],
    "greater": lambda i: i["x"] > i["y"],
    "select": lambda i: np.where(i["cond"], i["a"], i["b"]),
    "reduce_mean": _reduce(np.mean),
    "reduce_sum": _reduce(np.sum),
    "reduce_max": _reduce(np.max),
    "cast": cast,
    "identity": lambda i: i["x"],
    "reshape": reshape,
    "transpose": lambda i: i["x"].transpose([int(p) for p in i["perm"]]),
    "expand_dims": lambda i: np.expand_dims(i["x"], tuple(int(a) for a in i["axes"])),
    "squeeze": lambda i: np.squeeze(i["x"], tuple(int(a) for a in i["axes"]) if "axes" in i else None),
    "concat": lambda i: np.concatenate(i["values"], int(i["axis"])),
    "stack": lambda i: np.stack(i["values"], int(i["axis"])),
    "split": split,
    "tile": lambda i: np.tile(i["x"], [int(r) for r in i["reps"]]),
    "shape": lambda i: np.array(i["x"].shape, np.int32),
    "gather": lambda i: np.take(i["x"], i["indices"].astype(np.intp), int(i.get("axis", 0))),
    "slice_by_index": slice_by_index,
    "slice_update": slice_update,
}
