"""The Core AI backend of the macro-operations: `edgevlm.models` played on coreai.authoring, in float32.

Only basic operations (matmul, softmax, mean, convolution), so that it shares nothing with the fused kernels it is a
second opinion on. coreai-core 1.0.0b3; its operations check shapes and element types when the module is closed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.errors import EdgeVLMError
from edgevlm.models.ops import Weights, X
from edgevlm.models.spec import DecoderSpec
from edgevlm.types import F32


def dims(*values: int) -> npt.NDArray[np.uint32]:
    """Shapes, permutations and sizes: the compiler refuses signed integers here, and wants them in `places`."""
    return np.array(values, np.uint32)


def places(*values: int) -> npt.NDArray[np.int32]:
    """Axes to reduce and the corners of slices."""
    return np.array(values, np.int32)


class CoreAiOps:
    """Emits one graph. X is a coreai.authoring.Value of rank 3 (1, S, D), pixels of rank 4.

    inputs: of the decoder: mask (1, 1, S, past + S), cos and sin (1, 1, S, head size / 2), select (1, 1, S) with a
    one at the position that gets logits, key_cache and value_cache (layers, kv heads, past, head size).
    """

    def __init__(
        self, authoring: Any, weights: Weights, spec: DecoderSpec | None = None, inputs: dict[str, X] | None = None
    ) -> None:
        self.a, self.weights, self.spec, self.inputs = authoring, weights, spec, inputs or {}
        self.keys: list[X] = []  # of this call, one (1, kv heads, S, head size) per layer
        self.values: list[X] = []

    def _weight(self, name: str) -> F32:
        return np.ascontiguousarray(self.weights.read(name), np.float32)

    def _add_bias(self, x: X, *names: str) -> X:
        if not any(f"{name}.bias" in self.weights for name in names):
            return x
        biases = [
            self._weight(f"{name}.bias")
            if f"{name}.bias" in self.weights
            else np.zeros(len(self.weights.read(f"{name}.weight")), np.float32)
            for name in names
        ]
        return self.add(x, np.concatenate(biases))

    def _mul(self, x: X, y: X) -> X:
        return self.a.broadcasting_mul(x, y)

    def _matmul(self, x: X, y: X) -> X:
        return self.a.broadcasting_batch_matmul(x, y)

    def _reshape(self, x: X, *shape: int) -> X:
        return self.a.reshape(x, dims(*shape))

    def _swap(self, x: X, *order: int) -> X:
        return self.a.transpose(x, dims(*order))

    def patch_embed(self, pixels: X, name: str, patch_size: int) -> X:
        step = [patch_size, patch_size]
        x = self.a.conv2d(pixels, self._weight(f"{name}.weight"), dims(*step), dims(1, 1), np.uint32(1))
        _, width, rows, cols = x.type.shape
        return self._add_bias(self._swap(self._reshape(x, 1, width, rows * cols), 0, 2, 1), name)

    def add_table(self, x: X, name: str) -> X:
        return self.add(x, self._weight(name)[None])

    def add(self, x: X, y: X) -> X:
        return self.a.broadcasting_add(x, y)

    def _mean(self, x: X) -> X:
        return self.a.reduce_mean(x, places(len(x.type.shape) - 1))

    def layer_norm(self, x: X, name: str, eps: float) -> X:
        centred = self.a.broadcasting_sub(x, self._mean(x))
        return self._add_bias(self._scale(centred, name, eps), name)

    def rms_norm(self, x: X, name: str, eps: float) -> X:
        return self._scale(x, name, eps)

    def _scale(self, x: X, name: str, eps: float) -> X:
        """x / sqrt(mean(x^2) + eps) * weight: of centred rows, the mean square is the variance."""
        inverse = self.a.rsqrt(self.add(self._mean(self._mul(x, x)), np.float32(eps)))
        return self._mul(self._mul(x, inverse), self._weight(f"{name}.weight"))

    def add_rms_norm(self, x: X, delta: X, name: str, eps: float) -> tuple[X, X]:
        total = self.add(x, delta)
        return total, self.rms_norm(total, name, eps)

    def linear(self, x: X, *names: str) -> X:
        matrix = np.concatenate([self._weight(f"{name}.weight") for name in names])
        return self._add_bias(self._matmul(x, np.ascontiguousarray(matrix.T)), *names)

    def gelu(self, x: X, kind: str) -> X:
        return self.a.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")

    def swiglu(self, x: X) -> X:
        half = x.type.shape[-1] // 2
        gate, up = self._split(x, half, half, axis=2)
        return self._mul(self.a.silu(gate), up)

    def _split(self, x: X, *sizes: int, axis: int) -> list[X]:
        return list(self.a.split(x, dims(*sizes), axis))

    def attention(self, qkv: X, num_heads: int) -> X:
        _, patches, width = qkv.type.shape
        size = width // 3 // num_heads
        heads = self._swap(self._reshape(qkv, 1, patches, 3 * num_heads, size), 0, 2, 1, 3)
        q, k, v = self._split(heads, num_heads, num_heads, num_heads, axis=1)
        return self._reshape(self._swap(self._attend(q, k, v), 0, 2, 1, 3), 1, patches, width // 3)

    def _attend(self, q: X, k: X, v: X, mask: X | None = None) -> X:
        scores = self._mul(self._matmul(q, self._swap(k, 0, 1, 3, 2)), np.float32(q.type.shape[-1] ** -0.5))
        return self._matmul(self.a.softmax(scores if mask is None else self.add(scores, mask), 3), v)

    def cached_attention(self, qkv: X, layer: int) -> X:
        """The cache is an input and this call's rows are outputs; whoever calls writes them into it."""
        spec = self.spec
        assert spec is not None, "cached_attention needs a DecoderSpec"
        kv, size, rows = spec.num_kv_heads, spec.head_dim, qkv.type.shape[1]
        heads = self._swap(self._reshape(qkv, 1, rows, spec.num_heads + 2 * kv, size), 0, 2, 1, 3)
        qk, v = self._split(heads, spec.num_heads + kv, kv, axis=1)
        q, k = self._split(self._rotate(qk), spec.num_heads, kv, axis=1)
        self.keys.append(k)
        self.values.append(v)
        keys = self._repeat(self.a.concat(2, [self._past("key_cache", layer), k]))
        values = self._repeat(self.a.concat(2, [self._past("value_cache", layer), v]))
        out = self._attend(q, keys, values, self.inputs["mask"])
        return self._reshape(self._swap(out, 0, 2, 1, 3), 1, rows, spec.num_heads * size)

    def _rotate(self, x: X) -> X:
        half = x.type.shape[-1] // 2
        first, second = self._split(x, half, half, axis=3)
        cos, sin = self.inputs["cos"], self.inputs["sin"]
        turned = self.a.broadcasting_sub(self._mul(first, cos), self._mul(second, sin))
        return self.a.concat(3, [turned, self.add(self._mul(second, cos), self._mul(first, sin))])

    def _past(self, name: str, layer: int) -> X:
        cache = self.inputs[name]
        _, kv, past, size = cache.type.shape
        return self.a.slice_(cache, places(layer, 0, 0, 0), places(layer + 1, kv, past, size), places(1, 1, 1, 1))

    def _repeat(self, x: X) -> X:
        """(1, kv heads, T, head size) to (1, heads, T, head size): query heads of a group share a key head."""
        assert self.spec is not None
        kv, group = self.spec.num_kv_heads, self.spec.num_heads // self.spec.num_kv_heads
        single = self._split(x, *[1] * kv, axis=1) if kv > 1 else [x]
        return self.a.concat(1, [head for head in single for _ in range(group)])

    def pixel_shuffle(self, x: X, scale: int) -> X:
        _, patches, width = x.type.shape
        side = math.isqrt(patches) // scale
        grid = self._swap(self._reshape(x, side, scale, side, scale * width), 0, 2, 1, 3)
        return self._reshape(grid, 1, patches // scale**2, width * scale**2)

    def embed(self, ids: X, name: str) -> X:
        raise EdgeVLMError("Core AI programs take embeddings, not ids.")

    def last_position(self, x: X) -> X:
        return self._matmul(self.inputs["select"], x)
