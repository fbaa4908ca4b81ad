"""Writes the ONNX target: three graphs in the transformers.js layout, each also in standard operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnx import TensorProto

from edgevlm.bundle.qtensor import PREFILL, QTensor
from edgevlm.export.onnx_.graph import Graph
from edgevlm.export.onnx_.ops import OnnxOps
from edgevlm.export.onnx_.placement import Linear, Placement
from edgevlm.export.onnx_.portable import PortableOps
from edgevlm.export.onnx_.storage import DataFile, TensorTable
from edgevlm.export.quantize.recipe import Recipe
from edgevlm.export.quantize.round import quantize
from edgevlm.models.llama import decoder, embed_tokens
from edgevlm.models.model import ModelSpec
from edgevlm.models.ops import Weights
from edgevlm.models.projector import projector
from edgevlm.models.siglip import vision_tower


def write_onnx(
    folder: Path,
    spec: ModelSpec,
    weights: Weights,
    recipe: Recipe,
    quantized: Callable[[str], QTensor],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write `folder` (which exists and is empty). Returns the manifest entry and the entries of weights.json."""
    table = TensorTable(folder.name)
    shared: dict[str, Linear] = {}
    graphs: dict[str, dict[str, Any]] = {}

    def emit(graph_name: str, file: str, build: Callable[[OnnxOps], None], second: Recipe | None = None) -> Placement:
        data = DataFile(folder, f"{file}.onnx_data")
        if second is None:
            placement = Placement(weights, recipe.form, quantized, data, table, shared)
        else:
            table.prefix = PREFILL
            placement = Placement(weights, second.form, _quantizer(weights, second), data, table, shared)
        variants: list[tuple[type[OnnxOps], str]] = [(OnnxOps, ""), (PortableOps, "_portable")]
        built = {}
        for ops_class, suffix in variants:
            graph = Graph(graph_name)
            build(ops_class(graph, placement, spec.decoder))
            built[f"{file}{suffix}.onnx"] = graph
        data.close()
        for path, graph in built.items():
            graph.save(folder / path)
        graphs[graph_name] = {
            "file": f"{folder.name}/{file}.onnx",
            "portable": f"{folder.name}/{file}_portable.onnx",
            **built[f"{file}.onnx"].signature(),
        }
        return placement

    emit("vision_encoder", "vision_encoder", lambda ops: _vision(ops, spec))
    tokens = emit("embed_tokens", "embed_tokens", lambda ops: _embed(ops, spec))
    if spec.decoder.tie_embeddings:
        shared["decoder.embed"] = tokens.linear(("decoder.embed",), rows=True)
    emit("decoder", "decoder_model_merged", lambda ops: _decoder(ops, spec))
    graphs["decoder"]["shared_kv"] = True
    if recipe.prefill is not None:
        prompt = replace(recipe, decoder=recipe.prefill)
        emit("decoder_prefill", "decoder_prefill", lambda ops: _decoder(ops, spec), prompt)
        graphs["decoder_prefill"]["shared_kv"] = True
    return {"graphs": graphs}, table.entries


def _quantizer(weights: Weights, recipe: Recipe) -> Callable[[str], QTensor]:
    return lambda name: quantize(weights.read(name), recipe.form(name).kind, name)


def _vision(ops: OnnxOps, spec: ModelSpec) -> None:
    g, vision = ops.graph, spec.vision
    size = vision.image_size
    pixels = g.input("pixel_values", TensorProto.FLOAT, ["batch_size", "num_images", vision.num_channels, size, size])
    mask = g.input("pixel_attention_mask", TensorProto.BOOL, ["batch_size", "num_images", size, size])
    tiles = g.node("Reshape", pixels, g.constant([-1, vision.num_channels, size, size]))
    # Tiles that only fill up a batch are masked everywhere; like transformers, drop them.
    flat = g.node("Cast", g.node("Reshape", mask, g.constant([-1, size * size])), to=TensorProto.INT32)
    real = g.node("Cast", g.node("ReduceMax", flat, g.constant([1]), keepdims=0), to=TensorProto.BOOL)
    tiles = g.node("Compress", tiles, real, axis=0)
    ops.set_grid(vision.patches_per_side, vision.hidden_size)
    features = projector(ops, vision_tower(ops, tiles, vision), spec.projector)
    g.output("image_features", features, TensorProto.FLOAT, ["tiles", spec.image_tokens, spec.decoder.hidden_size])


def _embed(ops: OnnxOps, spec: ModelSpec) -> None:
    ids = ops.graph.input("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
    embeds = embed_tokens(ops, ids)
    shape: list[int | str] = ["batch_size", "sequence_length", spec.decoder.hidden_size]
    ops.graph.output("inputs_embeds", embeds, TensorProto.FLOAT, shape)


def _decoder(ops: OnnxOps, spec: ModelSpec) -> None:
    g, text = ops.graph, spec.decoder
    embeds = g.input("inputs_embeds", TensorProto.FLOAT, ["batch_size", "sequence_length", text.hidden_size])
    mask = g.input("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"])
    presents = []
    rows: list[int | str] = ["batch_size", text.num_kv_heads]
    for layer in range(text.num_layers):
        for part in ("key", "value"):
            shape = [*rows, "past_sequence_length", text.head_dim]
            g.input(f"past_key_values.{layer}.{part}", TensorProto.FLOAT, shape)
            presents.append(f"present.{layer}.{part}")
    ops.begin_decoder(embeds, mask)
    logits = decoder(ops, embeds, text)
    g.output("logits", logits, TensorProto.FLOAT, ["batch_size", 1, text.vocab_size])
    for present in presents:
        g.output(present, present, TensorProto.FLOAT, [*rows, "total_sequence_length", text.head_dim])
