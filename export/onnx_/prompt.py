"""The decoder's graph for prompts: int8 products of many rows, whose activations have a range for each position."""

from __future__ import annotations

import numpy as np

from edgevlm.export.onnx_.ops import OnnxOps
from edgevlm.export.onnx_.placement import Linear

LEAST = 1e-30  # range of a position that is zero everywhere


class PromptOps(OnnxOps):
    """DynamicQuantizeMatMul has one range for a whole prompt, of which a first token's values can leave the others
    nothing: they may be hundreds of times as large (arXiv 2402.17762). So each position is divided by its largest value
    before a product and multiplied by it behind.
    """

    def _dynamic_linear(self, x: str, linear: Linear, bias: str | None) -> str:
        g, last = self.graph, self.graph.constant([-1])
        ends = g.node("ReduceMax", x, last), g.node("Neg", g.node("ReduceMin", x, last))
        largest = g.node("Max", *ends, g.constant(LEAST, np.float32))
        product = g.node("Mul", super()._dynamic_linear(g.node("Div", x, largest), linear, None), largest)
        return g.node("Add", product, bias) if bias else product
