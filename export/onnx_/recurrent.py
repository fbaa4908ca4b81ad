"""What a decoder carries from call to call beside keys and values, in ONNX Runtime's kernels (1.30 and later)."""

from __future__ import annotations

import numpy as np

from edgevlm.export.onnx_.graph import MICROSOFT
from edgevlm.export.onnx_.products import ProductOps, Value
from edgevlm.models.spec import DeltaRule


class RecurrentOps(ProductOps):
    """Heads stand behind positions here: (B, S, H, d)."""

    def vector(self, name: str, size: int) -> str:
        return self.placement.plain(self.graph, name)

    def causal_conv(self, x: Value, name: str, width: int, kernel: int, state: str) -> str:
        outputs = [f"{name}.out", f"present.{state}"]
        # An activation of its own would be one node less, and the portable graph has none.
        out, _ = self.graph.nodes(
            "CausalConvWithState", self.value(x), self._taps(name), "", f"past_key_values.{state}", outputs=outputs,
            domain=MICROSOFT, activation="none", channels_last=1,
        )  # fmt: skip
        return out

    def _taps(self, name: str) -> str:
        """The weight (D, kernel) of a depthwise convolution as (D, 1, kernel)."""
        g = self.graph
        return g.node("Unsqueeze", self.placement.plain(g, f"{name}.weight"), g.constant([1]))

    def correct(self, x: Value, decay: Value, rate: Value, r: DeltaRule, state: str) -> str:
        g, (q, k, v) = self.graph, self._unit_keys(x, r)
        flat = [g.node("Reshape", part, g.constant([0, 0, -1])) for part in (q, k)]
        out, _ = g.nodes(
            "LinearAttention", *flat, v, f"past_key_values.{state}", self.value(decay), self.value(rate),
            outputs=[f"{state}.out", f"present.{state}"], domain=MICROSOFT, q_num_heads=r.key_heads,
            kv_num_heads=r.value_heads, update_rule="gated_delta",
        )  # fmt: skip
        return g.node("Reshape", out, g.constant([0, 0, r.value_heads, r.value_dim]))

    def _unit_keys(self, x: Value, r: DeltaRule) -> list[str]:
        """Queries and keys (B, S, key heads, key dim) of unit length, and values as they come.

        A norm by the root mean square, of the same 1e-6 for the sum of all squares, is sqrt(key dim) times as long.
        """
        g, keys = self.graph, r.key_heads * r.key_dim
        sizes = g.constant([keys, keys, r.value_heads * r.value_dim])
        *turned, v = g.nodes("Split", self.value(x), sizes, outputs=3, axis=-1)
        shape = g.constant([0, 0, r.key_heads, r.key_dim])
        weight = g.constant([r.key_dim**-0.5] * r.key_dim, np.float32)
        heads = [g.node("Reshape", part, shape) for part in turned]
        unit = [g.node("RMSNormalization", part, weight, axis=-1, epsilon=1e-6 / r.key_dim) for part in heads]
        return [*unit, v]

    def merge(self, x: Value) -> str:
        return self.graph.node("Reshape", self.value(x), self.graph.constant([0, 0, -1]))
