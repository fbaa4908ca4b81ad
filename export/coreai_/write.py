"""Core AI programs of a model: VisionEncoder.aimodel and Decoder.aimodel, in float32 with fixed shapes. Beta."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from edgevlm.errors import EdgeVLMError
from edgevlm.export.coreai_.ops import CoreAiOps
from edgevlm.models.components import components
from edgevlm.models.model import ModelSpec, Tower
from edgevlm.models.ops import Weights, X
from edgevlm.models.tensor import Tensor
from edgevlm.runtimes.coreai import DECODER, VISION, load_coreai, rows_per_call, state_input, state_output
from edgevlm.runtimes.coreml.inputs import axis_sizes, decoder_tensors

Tensors = Mapping[str, Tensor]
VIEW = (448, 448)


def write_aimodel(
    folder: Path, spec: ModelSpec, weights: Weights, context: int, views: Iterable[tuple[int, int]] = (VIEW,)
) -> None:
    """Write `VISION` and `DECODER` into `folder`, every weight in float32.

    context: positions of the decoder's cache. views: heights and widths in pixels of the pictures that an encoder of
    any picture size should have room for. The encoder takes one view, the decoder `rows_per_call` positions per call;
    inputs and outputs are those of `edgevlm.runtimes.coreai`. Raises EdgeVLMError where coreai-core is missing, a
    program cannot be written, or the model has what these programs do not hold.
    """
    authoring, d = load_coreai("authoring"), spec.decoder
    vision, _, decoder = components(spec)
    if other := next((state for state in decoder.states if state.kind != "append"), None):
        raise EdgeVLMError(
            f"Core AI programs hold growing states only, and this decoder also carries '{other.name}': leave the "
            "second opinion out."
        )

    def encode(inputs: dict[str, X]) -> tuple[X, ...]:
        return tuple(vision.build(CoreAiOps(authoring, weights, inputs), inputs).values())

    sizes = _view_sizes(vision.inputs, spec.vision, views)
    _save(authoring, folder / VISION, encode, vision.inputs, vision.outputs, sizes)

    def decode(inputs: dict[str, X]) -> tuple[X, ...]:
        ops = CoreAiOps(authoring, weights, inputs)
        logits = decoder.build(ops, {"inputs_embeds": inputs["embeddings"]})["logits"]
        return logits, *(ops.new[state.name] for state in decoder.states)

    inputs = {name: tensor for name, tensor in decoder_tensors(d).items() if name != "position"}
    inputs |= {
        "embeddings": Tensor("float32", (1, "rows", d.embed_width)),
        "select": Tensor("float32", (1, 1, "rows")),
    }
    outputs = {"logits": Tensor("float32", (1, 1, d.vocab_size))}
    for state in decoder.states:
        inputs[state_input(state.name)] = Tensor("float32", (1, *(size or "past" for size in state.shape)))
        outputs[state_output(state.name)] = Tensor("float32", (1, *(size or "rows" for size in state.shape)))
    rows = rows_per_call(d, context)
    sizes = {"rows": rows, "past": context, "end": context + rows}
    _save(authoring, folder / DECODER, decode, inputs, outputs, sizes)


def _view_sizes(inputs: Tensors, tower: Tower, views: Iterable[tuple[int, int]]) -> dict[str, int]:
    """The tower's free axes: one tile, or what the largest of the views takes."""
    sizes = {"tiles": 1}
    if any(axis not in sizes for tensor in inputs.values() for axis in tensor.shape if isinstance(axis, str)):
        for view in views:
            found = axis_sizes(inputs, tower.feeds(np.zeros((3, *view), np.float32)))
            sizes |= {axis: max(size, sizes.get(axis, 0)) for axis, size in found.items()}
    if "patches" in sizes:  # of a tower without windows, whose tokens stand in their order
        sizes.setdefault("tokens", sizes["patches"] // getattr(tower, "unit", 1) ** 2)
    return sizes


def _save(
    authoring: Any,
    path: Path,
    body: Callable[[dict[str, X]], tuple[X, ...]],
    inputs: Tensors,
    outputs: Tensors,
    sizes: Mapping[str, int],
) -> None:
    """One program with the function `main`. The API reads a graph's interface from a Python signature."""

    def main(*values: X) -> tuple[X, ...]:
        return body(dict(zip(inputs, values, strict=True)))

    def annotate(name: str, tensor: Tensor) -> Any:
        shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)
        dtype = np.int32 if tensor.dtype == "int64" else np.float32
        return Annotated[authoring.Value, authoring.TensorType(shape, dtype, name=name)]

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    main.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in inputs])  # type: ignore[attr-defined]
    main.__annotations__ = {name: annotate(name, tensor) for name, tensor in inputs.items()}
    returned = tuple(annotate(name, tensor) for name, tensor in outputs.items())
    main.__annotations__["return"] = tuple.__class_getitem__(returned)
    with authoring.Context():
        module = authoring.Module.create()
        with module:
            authoring.graph(main)
        try:
            authoring.AIProgram(module).save_asset(path)
        except (OSError, RuntimeError) as error:
            why = error.__cause__ or error
            raise EdgeVLMError(f"'{path}' could not be written ({why}): check the disk and try again.") from error
