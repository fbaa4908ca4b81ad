"""Writes the ONNX target: three graphs in the transformers.js layout, each also in standard operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnx import TensorProto

from edgevlm.bundle.qtensor import PREFILL, QTensor
from edgevlm.bundle.targets import OnnxGraph, OnnxTarget
from edgevlm.export.onnx_.graph import Graph
from edgevlm.export.onnx_.ops import OnnxOps
from edgevlm.export.onnx_.placement import Linear, OnnxWeights, Unplaced
from edgevlm.export.onnx_.portable import PortableOps
from edgevlm.export.onnx_.products import Value
from edgevlm.export.onnx_.prompt import PromptOps
from edgevlm.export.onnx_.storage import DataFile, TensorTable
from edgevlm.export.quantize.recipe import Recipe
from edgevlm.models.components import Component, components, rope_names
from edgevlm.models.model import ModelSpec
from edgevlm.models.ops import Weights
from edgevlm.models.tensor import Tensor

_DTYPES = {
    "float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "int8": TensorProto.INT8, "bool": TensorProto.BOOL,
}  # fmt: skip


def write_onnx(
    folder: Path,
    spec: ModelSpec,
    weights: Weights,
    recipe: Recipe,
    quantized: Callable[[str], QTensor],
) -> tuple[OnnxTarget, dict[str, Any]]:
    """Write `folder` (which exists and is empty). Returns the manifest entry and the entries of weights.json."""
    table = TensorTable(folder.name)
    shared: dict[str, Linear] = {}
    graphs: dict[str, OnnxGraph] = {}

    def emit(component: Component, file: str | None = None, second: Recipe | None = None) -> OnnxWeights:
        file = file or component.name
        data = DataFile(folder, f"{file}.onnx_data")
        if second is None:
            placement = OnnxWeights(weights, recipe.form, quantized, data, table, shared)
        else:
            table.prefix = PREFILL
            placement = OnnxWeights(weights, second.form, lambda name: quantized(PREFILL + name), data, table, shared)
        fused = OnnxOps if second is None else PromptOps
        variants: list[tuple[type[OnnxOps], str]] = [(fused, ""), (PortableOps, "_portable")]
        built = {}
        for ops_class, suffix in variants:
            graph = Graph(component.name)
            _build(ops_class(graph, placement, spec.decoder), spec, component)
            built[f"{file}{suffix}.onnx"] = graph
        data.close()
        for path, graph in built.items():
            graph.save(folder / path)
        inputs, outputs = built[f"{file}.onnx"].signature()
        graphs[component.name] = OnnxGraph(
            f"{folder.name}/{file}.onnx",
            f"{folder.name}/{file}_portable.onnx",
            inputs,
            outputs,
            shared_kv=bool(component.states),
        )
        return placement

    parts = {component.name: component for component in components(spec)}
    emit(parts["vision_encoder"])
    tokens = emit(parts["embed_tokens"])
    if spec.decoder.tie_embeddings:
        shared["decoder.embed"] = tokens.linear(("decoder.embed",), rows=True)
    emit(parts["decoder"], "decoder_model_merged")
    if recipe.prefill is not None:
        prompt = replace(recipe, decoder=recipe.prefill)
        emit(replace(parts["decoder"], name="decoder_prefill"), second=prompt)
    return OnnxTarget(graphs), table.entries


def check_onnx(spec: ModelSpec) -> None:
    """Raise EdgeVLMError for a model that the graphs cannot hold: they are built, of weights without values."""
    for component in components(spec):
        for ops_class in (OnnxOps, PortableOps):
            _build(ops_class(Graph(component.name), Unplaced(spec), spec.decoder), spec, component)


def _build(ops: OnnxOps, spec: ModelSpec, component: Component) -> None:
    """Declare a component's inputs, outputs and states in the graph, and play it between them."""
    g = ops.graph
    tiles = component.inputs.get("pixels")
    if tiles is not None:
        pixels = _real_tiles(g, tiles) if spec.masked_tiles else g.input("pixel_values", TensorProto.FLOAT, tiles.shape)
        values: dict[str, Value] = {"pixels": pixels}
    else:
        # RoPE rows stand for all positions of the cache here, see OnnxOps._rope.
        total, rows = "total_sequence_length", rope_names(spec.decoder)
        values = {
            name: g.input(name, _DTYPES[t.dtype], (total, *t.shape[1:]) if name in rows else t.shape)
            for name, t in component.inputs.items()
        }
    if component.states:
        mask = g.input("attention_mask", TensorProto.INT64, ["batch_size", total])
        for state in component.states:
            past = ["batch_size", *("past_sequence_length" if n is None else n for n in state.shape)]
            g.input(f"past_key_values.{state.name}", _DTYPES[ops.kept_as(state)], past)
        ops.begin_decoder(str(values["inputs_embeds"]), mask)
    for name, value in component.build(ops, values).items():
        tensor = component.outputs[name]
        g.output(name, ops.value(value), _DTYPES[tensor.dtype], tensor.shape)
    for state in component.states:
        present = ["batch_size", *(total if n is None else n for n in state.shape)]
        g.output(f"present.{state.name}", f"present.{state.name}", _DTYPES[ops.kept_as(state)], present)


def _real_tiles(g: Graph, pixels: Tensor) -> str:
    """Tiles (T, 3, S, S) out of transformers' batch of pictures, each with as many tiles as the one with most."""
    _, channels, size, _ = pixels.shape
    batch = g.input("pixel_values", TensorProto.FLOAT, ["batch_size", "num_images", channels, size, size])
    mask = g.input("pixel_attention_mask", TensorProto.BOOL, ["batch_size", "num_images", size, size])
    tiles = g.node("Reshape", batch, g.constant([-1, channels, size, size]))
    # Tiles that only fill up a batch are masked everywhere; like transformers, drop them.
    flat = g.node("Cast", g.node("Reshape", mask, g.constant([-1, int(size) ** 2])), to=TensorProto.INT32)
    real = g.node("Cast", g.node("ReduceMax", flat, g.constant([1]), keepdims=0), to=TensorProto.BOOL)
    return g.node("Compress", tiles, real, axis=0)
