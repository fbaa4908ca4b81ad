"""The eager backend: computes in float32 numpy. Slow, plain, and what every artifact is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from edgevlm.models.llama import rope_tables
from edgevlm.models.ops import Weights
from edgevlm.models.spec import DecoderSpec
from edgevlm.types import F32, I64

_SQRT_2_OVER_PI = np.float32(math.sqrt(2.0 / math.pi))


@dataclass
class KVCache:
    """Keys after RoPE and values, one (kv heads, positions, head size) pair per layer."""

    spec: DecoderSpec
    keys: dict[int, F32] = field(default_factory=dict)
    values: dict[int, F32] = field(default_factory=dict)

    def length(self, layer: int = 0) -> int:
        return self.keys[layer].shape[1] if layer in self.keys else 0

    def append(self, layer: int, keys: F32, values: F32) -> tuple[F32, F32]:
        if layer in self.keys:
            keys = np.concatenate([self.keys[layer], keys], axis=1)
            values = np.concatenate([self.values[layer], values], axis=1)
        self.keys[layer], self.values[layer] = keys, values
        return keys, values

    def truncate(self, length: int) -> None:
        for store in (self.keys, self.values):
            for layer in store:
                store[layer] = store[layer][:, :length]


class EagerOps:
    """Plays `Ops` on arrays. Weights are read when an operation needs them and dropped after it."""

    def __init__(self, weights: Weights, cache: KVCache | None = None, *, keep: int = 1) -> None:
        """keep: how many of the last positions get logits."""
        self.weights, self.cache, self.keep = weights, cache, keep

    def _weight(self, name: str) -> F32:
        return self.weights.read(name)

    def patch_embed(self, pixels: F32, name: str, patch_size: int) -> F32:
        t, c, height, width = pixels.shape
        rows, cols = height // patch_size, width // patch_size
        patches = pixels.reshape(t, c, rows, patch_size, cols, patch_size).transpose(0, 2, 4, 1, 3, 5)
        kernel = self._weight(f"{name}.weight")
        flat = patches.reshape(t, rows * cols, -1) @ kernel.reshape(kernel.shape[0], -1).T
        return self._add_bias(flat, name)

    def _add_bias(self, x: F32, name: str) -> F32:
        return x + self._weight(f"{name}.bias") if f"{name}.bias" in self.weights else x

    def add_table(self, x: F32, name: str) -> F32:
        return x + self._weight(name)

    def add(self, x: F32, y: F32) -> F32:
        return x + y

    def layer_norm(self, x: F32, name: str, eps: float) -> F32:
        centred = x - x.mean(-1, keepdims=True)
        variance = np.square(centred).mean(-1, keepdims=True)
        normed = centred / np.sqrt(variance + np.float32(eps)) * self._weight(f"{name}.weight")
        return self._add_bias(normed, name)

    def rms_norm(self, x: F32, name: str, eps: float) -> F32:
        mean_square = np.square(x).mean(-1, keepdims=True)
        normed: F32 = x / np.sqrt(mean_square + np.float32(eps)) * self._weight(f"{name}.weight")
        return normed

    def add_rms_norm(self, x: F32, delta: F32, name: str, eps: float) -> tuple[F32, F32]:
        total = x + delta
        return total, self.rms_norm(total, name, eps)

    def linear(self, x: F32, *names: str) -> F32:
        outs = [self._add_bias(x @ self._weight(f"{name}.weight").T, name) for name in names]
        return outs[0] if len(outs) == 1 else np.concatenate(outs, axis=-1)

    def gelu(self, x: F32, kind: str) -> F32:
        if kind == "gelu_tanh":
            squashed = np.tanh(_SQRT_2_OVER_PI * (x + np.float32(0.044715) * x * x * x))
        else:
            squashed = _erf(x / np.float32(math.sqrt(2.0)))
        return np.asarray(0.5 * x * (1.0 + squashed), dtype=np.float32)

    def swiglu(self, x: F32) -> F32:
        gate, up = np.split(x, 2, axis=-1)
        with np.errstate(over="ignore"):  # exp overflows to inf for very negative gates, and 1/inf is the right 0
            return np.asarray(gate / (1.0 + np.exp(-gate)) * up, dtype=np.float32)

    def attention(self, qkv: F32, num_heads: int) -> F32:
        tiles, patches, width = qkv.shape
        heads = qkv.reshape(tiles, patches, 3, num_heads, width // 3 // num_heads).transpose(2, 0, 3, 1, 4)
        out = np.empty_like(heads[0])
        for tile in range(tiles):  # one tile at a time bounds the (heads, P, P) scores
            q, k, v = heads[0, tile], heads[1, tile], heads[2, tile]
            out[tile] = _softmax(q @ k.transpose(0, 2, 1) * np.float32(q.shape[-1] ** -0.5)) @ v
        return np.ascontiguousarray(out.transpose(0, 2, 1, 3)).reshape(tiles, patches, width // 3)

    def cached_attention(self, qkv: F32, layer: int) -> F32:
        assert self.cache is not None, "cached_attention needs a KVCache"
        spec, new = self.cache.spec, qkv.shape[0]
        past = self.cache.length(layer)
        heads = qkv.reshape(new, spec.num_heads + 2 * spec.num_kv_heads, spec.head_dim).transpose(1, 0, 2)
        q, k, v = np.split(heads, [spec.num_heads, spec.num_heads + spec.num_kv_heads])
        cos, sin = (table[past:] for table in rope_tables(spec, past + new))
        keys, values = self.cache.append(layer, _rotate(k, cos, sin), v)
        group = spec.num_heads // spec.num_kv_heads
        q = _rotate(q, cos, sin).reshape(spec.num_kv_heads, group, new, spec.head_dim)
        scores = q @ keys[:, None].transpose(0, 1, 3, 2) * np.float32(spec.head_dim**-0.5)
        future = np.arange(past + new)[None, :] > (past + np.arange(new))[:, None]
        out = _softmax(np.where(future, np.float32(-np.inf), scores)) @ values[:, None]
        merged = out.reshape(spec.num_heads, new, spec.head_dim).transpose(1, 0, 2)
        return np.ascontiguousarray(merged).reshape(new, spec.num_heads * spec.head_dim)

    def pixel_shuffle(self, x: F32, scale: int) -> F32:
        tiles, patches, width = x.shape
        side = math.isqrt(patches)
        grid = x.reshape(tiles, side // scale, scale, side // scale, scale, width).transpose(0, 1, 3, 2, 4, 5)
        return grid.reshape(tiles, patches // scale**2, width * scale**2)

    def embed(self, ids: I64, name: str) -> F32:
        rows: F32 = self._weight(f"{name}.weight")[ids]
        return rows

    def last_position(self, x: F32) -> F32:
        return x[-self.keep :]


def _rotate(x: F32, cos: F32, sin: F32) -> F32:
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _softmax(scores: F32) -> F32:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    normed: F32 = weights / weights.sum(-1, keepdims=True)
    return normed


def _erf(x: F32) -> F32:
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x), dtype=np.float32)
