"""The vocabulary that architectures are written in. Each backend plays it: eager computes, onnx and mil emit nodes.

Values are opaque handles (`X`): arrays for eager, value names for emitters. Weights are named, never passed:
a backend finds `<name>.weight` and, where the checkpoint has one, `<name>.bias` in its own store.
"""

from __future__ import annotations

from typing import Any, Protocol

from edgevlm.types import F32

X = Any


class Weights(Protocol):
    """Tensors by canonical name, read one at a time so that a model never has to fit in memory."""

    def read(self, name: str) -> F32: ...

    def __contains__(self, name: object) -> bool: ...


class Ops(Protocol):
    """Macro-operations. Shapes: T tiles, P patches, S positions, D hidden size."""

    def patch_embed(self, pixels: X, name: str, patch_size: int) -> X:
        """Convolve (T, C, H, W) with stride `patch_size` and flatten row by row to (T, P, D)."""

    def add_table(self, x: X, name: str) -> X:
        """Add the weight `name` (P, D) to every tile of (T, P, D)."""

    def add(self, x: X, y: X) -> X: ...

    def layer_norm(self, x: X, name: str, eps: float) -> X: ...

    def rms_norm(self, x: X, name: str, eps: float) -> X: ...

    def add_rms_norm(self, x: X, delta: X, name: str, eps: float) -> tuple[X, X]:
        """(x + delta, rms_norm(x + delta)): one fused kernel in most runtimes."""

    def linear(self, x: X, *names: str) -> X:
        """x @ W.T + b; several names give their outputs side by side (packed QKV, packed gate and up)."""

    def gelu(self, x: X, kind: str) -> X:
        """ "gelu_tanh" (Hendrycks and Gimpel's tanh form) or "gelu" (erf)."""

    def swiglu(self, x: X) -> X:
        """Packed (.., 2F) gate and up to silu(gate) * up (.., F)."""

    def attention(self, qkv: X, num_heads: int) -> X:
        """Bidirectional softmax attention over packed (T, P, 3D), scaled by 1/sqrt(head size), to (T, P, D)."""

    def cached_attention(self, qkv: X, layer: int) -> X:
        """Causal grouped-query attention with RoPE over packed (S, (heads + 2 kv heads) * head size).

        Appends this call's keys and values to the cache of `layer` and attends to all of it.
        """

    def pixel_shuffle(self, x: X, scale: int) -> X:
        """(T, P, D) to (T, P / scale^2, D * scale^2): scale x scale neighbours become channels, row by row."""

    def embed(self, ids: X, name: str) -> X: ...

    def last_position(self, x: X) -> X:
        """Keep the last real position of each sequence."""
