"""Core AI programs of a model: VisionEncoder.aimodel and Decoder.aimodel, in float32 with fixed shapes. Beta."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from edgevlm.errors import EdgeVLMError
from edgevlm.export.coreai_.ops import CoreAiOps
from edgevlm.models.llama import decoder
from edgevlm.models.model import ModelSpec
from edgevlm.models.ops import Weights, X
from edgevlm.models.projector import projector
from edgevlm.models.siglip import vision_tower
from edgevlm.runtimes.coreai import DECODER, ROWS, VISION, load_coreai

Shapes = dict[str, tuple[int, ...]]


def write_aimodel(folder: Path, spec: ModelSpec, weights: Weights, context: int) -> None:
    """Write `VISION` and `DECODER` into `folder`, every weight in float32.

    context: positions of the decoder's cache. The vision encoder takes one tile, the decoder `ROWS` positions per
    call; inputs and outputs are those of `edgevlm.runtimes.coreai`. Raises EdgeVLMError where coreai-core is missing
    or a program cannot be written.
    """
    authoring, text = load_coreai("authoring"), spec.decoder
    side, channels = spec.vision.image_size, spec.vision.num_channels

    def encode(inputs: dict[str, X]) -> tuple[X, ...]:
        ops = CoreAiOps(authoring, weights)
        return (projector(ops, vision_tower(ops, inputs["pixels"], spec.vision), spec.projector),)

    features: Shapes = {"image_features": (1, spec.image_tokens, text.hidden_size)}
    _save(authoring, folder / VISION, encode, {"pixels": (1, channels, side, side)}, features)

    def decode(inputs: dict[str, X]) -> tuple[X, ...]:
        ops = CoreAiOps(authoring, weights, text, inputs)
        logits = decoder(ops, inputs["embeddings"], text)
        return logits, authoring.concat(0, ops.keys), authoring.concat(0, ops.values)

    cache = (text.num_layers, text.num_kv_heads, context, text.head_dim)
    new = (text.num_layers, text.num_kv_heads, ROWS, text.head_dim)
    half = (1, 1, ROWS, text.head_dim // 2)
    inputs = {
        "embeddings": (1, ROWS, text.hidden_size),
        "mask": (1, 1, ROWS, context + ROWS),
        "cos": half,
        "sin": half,
        "select": (1, 1, ROWS),
        "key_cache": cache,
        "value_cache": cache,
    }
    outputs: Shapes = {"logits": (1, 1, text.vocab_size), "keys": new, "values": new}
    _save(authoring, folder / DECODER, decode, inputs, outputs)


def _save(
    authoring: Any, path: Path, body: Callable[[dict[str, X]], tuple[X, ...]], inputs: Shapes, outputs: Shapes
) -> None:
    """One program with the function `main`. The API reads a graph's interface from a Python signature."""

    def main(*values: X) -> tuple[X, ...]:
        return body(dict(zip(inputs, values, strict=True)))

    def annotate(name: str, shape: tuple[int, ...]) -> Any:
        return Annotated[authoring.Value, authoring.TensorType(shape, np.float32, name=name)]

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    main.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in inputs])  # type: ignore[attr-defined]
    main.__annotations__ = {name: annotate(name, shape) for name, shape in inputs.items()}
    returned = tuple(annotate(name, shape) for name, shape in outputs.items())
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
