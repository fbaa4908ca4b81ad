"""One position of the delta rule in standard operators: the body of a Scan."""

from __future__ import annotations

from typing import Any

from onnx import GraphProto, TensorProto, helper

from edgevlm.export.onnx_.graph import Graph


def delta_step(g: Graph) -> GraphProto:
    """From the state (B, H, key dim, value dim) and a position's q, k, v, what it keeps and its rate to the next state
    and the result (B, H, value dim). Constants are those of `g`, which holds the Scan."""
    nodes: list[Any] = []

    def node(op: str, *inputs: str) -> str:
        name = f"step/{op}_{len(nodes)}"
        nodes.append(helper.make_node(op, list(inputs), [name], name=name))
        return name

    row, column, both = g.constant([2]), g.constant([3]), g.constant([2, 3])
    kept = node("Mul", "state", node("Unsqueeze", "keeps", both))
    said = node("Squeeze", node("MatMul", node("Unsqueeze", "k", row), kept), row)
    missing = node("Mul", node("Sub", "v", said), node("Unsqueeze", "rate", row))
    written = node("MatMul", node("Unsqueeze", "k", column), node("Unsqueeze", missing, row))
    state = node("Add", kept, written)
    out = node("Squeeze", node("MatMul", node("Unsqueeze", "q", row), state), row)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("state", *"qkv", "keeps", "rate")]
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in (state, out)]
    return helper.make_graph(nodes, "delta_step", values, results)
