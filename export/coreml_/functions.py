"""A component of a model as functions of a CoreML program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevlm.errors import EdgeVLMError
from edgevlm.export.coreml_.ane_ops import AneOps
from edgevlm.export.coreml_.cache import Cache, pack
from edgevlm.export.coreml_.mil_ops import MilOps
from edgevlm.export.coreml_.options import MAX_SIDE
from edgevlm.export.coreml_.package import Mil
from edgevlm.export.coreml_.store import WeightStore
from edgevlm.models.components import Component
from edgevlm.models.model import Tower
from edgevlm.models.ops import X
from edgevlm.models.spec import Decoder
from edgevlm.models.tensor import Tensor
from edgevlm.models.towers.sheet_vit import SheetVit
from edgevlm.runtimes.coreml.inputs import axis_sizes, decoder_tensors, most_rows, package_inputs, package_tensor


@dataclass(frozen=True)
class Range:
    """Sizes of a free axis; a compiler plans for `usual`."""

    most: int
    usual: int


Sizes = Mapping[str, "int | Range"]


def vision_function(
    mil: Mil, store: WeightStore, component: Component, tower: Tower, profile: str, side: int
) -> tuple[Any, dict[str, Any]]:
    """The encoder, one view per call, and its inputs and outputs for the manifest.

    side: of the square picture that an encoder of any picture has room for where shapes are fixed, in pixels.
    """
    tensors = {name: package_tensor(name, tensor) for name, tensor in component.inputs.items()}
    sizes = _view_sizes(tensors, tower, profile, side)
    ops_type = AneOps if profile == "ane" else MilOps

    def body(inputs: dict[str, X]) -> list[X]:
        ops = ops_type(mil, store, inputs)
        values = {name: ops.load(value) if value.rank == 3 else value for name, value in inputs.items()}
        return [ops.output(x, name) for name, x in component.build(ops, values).items()]

    entry = {
        "inputs": {name: _shape(tensor, sizes) for name, tensor in tensors.items()},
        "outputs": {name: _shape(tensor, sizes) for name, tensor in component.outputs.items()},
    }
    return _function(mil, tensors, sizes, None, body), entry


def _view_sizes(tensors: dict[str, Tensor], tower: Tower, profile: str, side: int) -> Sizes:
    """Sizes of the free axes: of a picture `side` wide and high, or up to those of the largest."""
    free = {axis for tensor in tensors.values() for axis in tensor.shape if isinstance(axis, str)} - {"tiles"}
    if not free:
        return {"tiles": 1}

    def of(pixels: int) -> dict[str, int]:
        return axis_sizes(tensors, package_inputs(tower.feeds(np.zeros((3, pixels, pixels), np.float32))))

    unit = tower.patch_size * getattr(tower, "unit", 1)
    least = unit * (2 if isinstance(tower, SheetVit) else 1)  # a sheet has two rows of squares and more
    if profile == "gpu":  # which plans for such pictures and takes any
        side = max(least, side // unit * unit)
    if side < least or side % unit:
        raise EdgeVLMError(
            f"A CoreML encoder for pictures of {side} x {side} pixels is not possible: this model's views have sides "
            f"that are multiples of {unit}; give {max(least, side // unit * unit)}."
        )
    usual = of(side)
    if profile == "ane":
        return usual
    return {axis: Range(most, usual[axis]) for axis, most in of(MAX_SIDE // unit * unit).items()}


def decoder_functions(
    mil: Mil,
    store: WeightStore,
    component: Component,
    d: Decoder,
    profile: str,
    contexts: tuple[int, ...],
    prompt_rows: int,
    together: int | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The decoder's functions by name, and their context and rows, inputs, states and outputs for the manifest.

    prompt_rows: of a call of a prompt where lengths are fixed. together: how many positions may see later ones among
    themselves, and so have to be read by one call; None: as many as there are.
    """
    flexible = profile == "gpu"
    tensors = {"embeddings": Tensor("float16", (1, "rows", d.embed_width))}
    tensors |= {name: package_tensor(name, tensor) for name, tensor in decoder_tensors(d).items()}
    mask = next(name for name, tensor in tensors.items() if tensor.shape[-1] == "end")
    select = {"select": Tensor("float16", (1, 1, 1, "rows"))}
    functions, table = {}, {}
    for context in contexts:
        cache = pack(component.states, context, not flexible, mask)
        calls = {"main": context} if flexible else {f"prefill_{prompt_rows}": prompt_rows, "decode": 1}
        if not flexible and d.mask != "causal":
            whole = min(context, -(-(together or context) // prompt_rows) * prompt_rows)
            calls[f"prefill_{whole}"] = whole
        for call, rows in calls.items():
            name = call if flexible else f"{call}_ctx{context}"
            given = tensors | (select if not flexible and rows > 1 else {})
            size = Range(min(context, most_rows(d) or context), 1) if flexible else rows
            sizes = {"rows": size, "end": Range(context, 1) if flexible else context}
            functions[name] = _decoder_function(mil, store, component, given, sizes, cache, profile)
            table[name] = {"context": context, "rows": rows}
    entry = {
        "functions": table,
        "inputs": [*tensors, *(() if flexible else select)],
        "states": list(cache.packed),
        "outputs": [output.name for output in next(iter(functions.values())).outputs],
    }
    return functions, entry


def _decoder_function(
    mil: Mil,
    store: WeightStore,
    component: Component,
    tensors: dict[str, Tensor],
    sizes: Sizes,
    cache: Cache,
    profile: str,
) -> Any:
    ops_type = AneOps if profile == "ane" else MilOps

    def body(inputs: dict[str, X]) -> list[X]:
        ops = ops_type(mil, store, inputs, cache)
        found = component.build(ops, {"inputs_embeds": ops.load(inputs["embeddings"])})
        logits = found.pop("logits")
        others = [ops.output(value, name) for name, value in found.items()]
        if not isinstance(logits, list):
            return [ops.output(logits, "logits"), *others]
        return [*(ops.output(part, f"logits_{i}") for i, part in enumerate(logits)), *others]

    return _function(mil, tensors, sizes, cache, body)


def _function(
    mil: Mil, tensors: dict[str, Tensor], sizes: Sizes, cache: Cache | None, body: Callable[[dict[str, X]], list[X]]
) -> Any:
    """A function of these inputs and the cache's states; axes with a range are flexible."""
    kinds = {"float16": (mil.types.fp16, np.float16), "int32": (mil.types.int32, np.int32)}
    symbols = {axis: mil.new_symbol() for axis, size in sizes.items() if isinstance(size, Range)}
    ranges = {
        axis: mil.ct.RangeDim(1, size.most, default=size.usual)
        for axis, size in sizes.items()
        if isinstance(size, Range)
    }

    def shape(tensor: Tensor, free: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(free.get(axis, sizes[axis]) if isinstance(axis, str) else axis for axis in tensor.shape)

    inputs = {name: mil.mb.placeholder(shape(t, symbols), dtype=kinds[t.dtype][0]) for name, t in tensors.items()}
    for name, size in (cache.packed if cache else {}).items():
        inputs[name] = mil.mb.state_tensor_placeholder(size, dtype=mil.types.fp16)
    with mil.Function(inputs, opset_version=mil.ct.target.iOS18) as function:
        function.set_outputs(body(function.inputs))
    if ranges:
        function.set_input_types(tuple(
            mil.ct.TensorType(name=name, shape=shape(t, ranges), dtype=kinds[t.dtype][1]) for name, t in tensors.items()
        ))  # fmt: skip
    return function


def _shape(tensor: Tensor, sizes: Sizes) -> list[int | str]:
    """Fixed axes as numbers, flexible ones by their names."""
    fixed = {axis: size for axis, size in sizes.items() if isinstance(size, int)}
    return [fixed.get(axis, axis) if isinstance(axis, str) else axis for axis in tensor.shape]
