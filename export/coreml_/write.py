"""The CoreML target: `coreml/` of a bundle and its manifest entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.bundle.qtensor import QTensor
from edgevlm.errors import EdgeVLMError
from edgevlm.export.coreml_.ane_ops import MAX_DIM, AneOps
from edgevlm.export.coreml_.mil_ops import MilOps, Store, half
from edgevlm.export.coreml_.package import Mil, load_coremltools, save_package
from edgevlm.export.quantize.recipe import Recipe
from edgevlm.models.llama import decoder
from edgevlm.models.model import ModelSpec
from edgevlm.models.ops import Weights
from edgevlm.models.projector import projector
from edgevlm.models.siglip import vision_tower
from edgevlm.models.spec import Decoder

PROFILES = ("gpu", "ane")
MASK_VALUE = -1e4  # finite: the Neural Engine mishandles -inf (ml-ane-transformers, coreai-models' rules)
CONTEXT = 2048  # positions of the `gpu` state, which CoreML fixes at export and allocates at once
ANE_CONTEXTS = (
    512,
    1024,
    2048,
)  # decoding costs O(context) on the Neural Engine, so an app picks the one it needs
ANE_ROWS = 32  # prompt rows per call: more than 32 written to a state at once fails there (coremltools #2553)
_ALIGN = 64

Progress = Callable[[str], None]


@dataclass(frozen=True)
class CoreMLOptions:
    """contexts: positions of the KV cache, one for `gpu`, empty for the profile's own. max_dim: `ane` head
    split."""

    profile: str = "gpu"
    contexts: tuple[int, ...] = ()
    prompt_rows: int = ANE_ROWS
    max_dim: int = MAX_DIM

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise EdgeVLMError(f"CoreML profile '{self.profile}' does not exist: choose one of {', '.join(PROFILES)}.")
        if self.profile == "gpu" and len(self.contexts) > 1:
            raise EdgeVLMError("The CoreML profile 'gpu' holds one context length: give one, or use the profile 'ane'.")
        if any(context < 32 or context % 32 for context in self.contexts):
            raise EdgeVLMError("CoreML context lengths should be multiples of 32 (coremltools #2631): round them up.")


def check_recipe(recipe: Recipe, profile: str) -> None:
    """Refuse combinations that are known to be wrong on a device, with the reason and its source."""
    forms = {
        "vision": recipe.vision,
        "projector": recipe.projector,
        "decoder": recipe.decoder,
        "embed": recipe.embed,
    }
    if profile == "ane":
        for component, form in forms.items():
            if form.kind == "int4":
                raise EdgeVLMError(
                    f"The CoreML profile 'ane' cannot hold the {component} in int4: per-block weights are "
                    "wrong or crash on the Neural Engine (apple/coreai-models issues 279 and 55; coremltools' "
                    "guide to optimization asks for per-channel scales there); use --quantize palette6 or int8, or "
                    "the profile 'gpu'."
                )
            if form.kind == "palette4" and component == "decoder":
                raise EdgeVLMError(
                    "The CoreML profile 'ane' cannot hold the decoder in palette4: 4-bit palettes beside a state "
                    "crash or are wrong on the Neural Engine (coremltools issue 2716); use --decoder palette6 or int8."
                )


def write_coreml(
    folder: Path,
    spec: ModelSpec,
    weights: Weights,
    recipe: Recipe,
    quantized: Callable[[str], QTensor],
    profile: str = "gpu",
    progress: Progress | None = None,
    options: CoreMLOptions | None = None,
) -> dict[str, Any]:
    """Write VisionEncoder.mlpackage, Decoder.mlpackage and embedding.bin into `folder`, a bundle's coreml/.

    quantized: the QTensor of a linear weight by canonical name; what recipe keeps in fp32 is stored in fp16,
    the type that CoreML computes in. Returns the manifest's entry: files, functions, inputs, outputs, states,
    and under "weights" the operation and rows that hold each canonical matrix. Raises EdgeVLMError when
    coremltools is missing, a recipe is refused or a weight does not fit fp16.
    """
    options = options or CoreMLOptions(profile)
    check_recipe(recipe, options.profile)
    mil = load_coremltools()
    say = progress or (lambda message: None)
    target = folder
    say("CoreML: vision encoder")
    vision = _write_vision(mil, target, spec, weights, quantized, options)
    say("CoreML: decoder")
    decoder_entry = _write_decoder(mil, target, spec.decoder, weights, quantized, options)
    say("CoreML: embedding table")
    embedding = write_embedding(target / "embedding.bin", quantized("decoder.embed.weight"))
    places = {
        name: {"package": graph["file"], "parts": parts}
        for graph in (vision, decoder_entry)
        for name, parts in graph.pop("places").items()
    }
    return {
        "profile": options.profile,
        "compute_units": {"gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE"}[options.profile],
        "minimum_deployment_target": "iOS18",
        "precision": "fp16",
        "vision": vision,
        "decoder": decoder_entry,
        "embedding": {"file": "coreml/embedding.bin", **embedding},
        "weights": places,
    }


def _write_vision(
    mil: Mil,
    target: Path,
    spec: ModelSpec,
    weights: Weights,
    quantized: Callable[[str], QTensor],
    options: CoreMLOptions,
) -> dict[str, Any]:
    store = Store(weights, quantized)
    side = spec.vision.image_size
    shape = (1, spec.vision.num_channels, side, side)
    pixels = mil.mb.placeholder(shape, dtype=mil.types.fp16)
    with mil.Function({"pixels": pixels}, opset_version=mil.ct.target.iOS18) as function:
        ops = (AneOps if options.profile == "ane" else MilOps)(mil, store)
        states = vision_tower(ops, function.inputs["pixels"], spec.vision)
        function.set_outputs([ops.finish(projector(ops, states, spec.projector), "image_features")])
    save_package(mil, {"main": function}, target / "VisionEncoder.mlpackage")
    return {
        "file": "coreml/VisionEncoder.mlpackage",
        "inputs": {"pixels": list(shape)},
        "outputs": {"image_features": [1, spec.image_tokens, spec.decoder.hidden_size]},
        "places": store.places,
    }


def _write_decoder(
    mil: Mil,
    target: Path,
    spec: Decoder,
    weights: Weights,
    quantized: Callable[[str], QTensor],
    options: CoreMLOptions,
) -> dict[str, Any]:
    store = Store(weights, quantized)
    functions: dict[str, Any] = {}
    table: dict[str, dict[str, int]] = {}
    longest = max(32, spec.context_length // 32 * 32)
    if options.profile == "gpu":
        context = options.contexts[0] if options.contexts else min(CONTEXT, longest)
        functions["main"] = _gpu_function(mil, store, spec, context)
        table["main"] = {"context": context, "rows": context}
    else:
        contexts = options.contexts or tuple(c for c in ANE_CONTEXTS if c <= longest) or (longest,)
        for context in contexts:
            for rows, name in ((options.prompt_rows, f"prefill_{options.prompt_rows}"), (1, "decode")):
                name = f"{name}_ctx{context}"
                functions[name] = _ane_function(mil, store, spec, context, rows, options.max_dim)
                table[name] = {"context": context, "rows": rows}
    save_package(mil, functions, target / "Decoder.mlpackage")
    outputs = [output.name for output in next(iter(functions.values())).outputs]
    return {
        "file": "coreml/Decoder.mlpackage",
        "functions": table,
        "inputs": ["embeddings", "mask", "position", "cos", "sin"] + (["select"] if options.profile == "ane" else []),
        "states": ["key_cache", "value_cache"] if options.profile == "gpu" else ["kv_cache"],
        "outputs": outputs,
        "mask_value": MASK_VALUE,
        "rope": "cos rows are [cos, cos], sin rows are [-sin, sin]",
        "places": store.places,
    }


def _gpu_function(mil: Mil, store: Store, spec: Decoder, context: int) -> Any:
    mb, types, ct = mil.mb, mil.types, mil.ct
    rows, end = mil.new_symbol(), mil.new_symbol()
    cache = (spec.num_layers, spec.num_kv_heads, context, spec.head_dim)
    shapes: dict[str, tuple[Any, ...]] = {
        "embeddings": (1, rows, spec.hidden_size),
        "mask": (1, 1, rows, end),
        "cos": (1, 1, rows, spec.head_dim),
        "sin": (1, 1, rows, spec.head_dim),
    }
    inputs = {name: mb.placeholder(shape, dtype=types.fp16) for name, shape in shapes.items()}
    inputs["position"] = mb.placeholder((1,), dtype=types.int32)
    for name in ("key_cache", "value_cache"):
        inputs[name] = mb.state_tensor_placeholder(cache, dtype=types.fp16)
    with mil.Function(inputs, opset_version=ct.target.iOS18) as function:
        ops = MilOps(mil, store, spec)
        ops.start_decoder(function.inputs)
        function.set_outputs([ops.finish(decoder(ops, function.inputs["embeddings"], spec), "logits")])
    flexible = ct.RangeDim(1, context, default=1)
    function.set_input_types(
        tuple(
            ct.TensorType(name=name, shape=tuple(flexible if d in (rows, end) else d for d in shape), dtype=np.float16)
            for name, shape in shapes.items()
        )
    )
    return function


def _ane_function(mil: Mil, store: Store, spec: Decoder, context: int, rows: int, max_dim: int) -> Any:
    mb, types = mil.mb, mil.types
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings": (1, rows, spec.hidden_size),
        "mask": (1, 1, rows, context),
        "cos": (1, 1, rows, spec.head_dim),
        "sin": (1, 1, rows, spec.head_dim),
    }
    if rows > 1:
        shapes["select"] = (1, 1, 1, rows)
    inputs = {name: mb.placeholder(shape, dtype=types.fp16) for name, shape in shapes.items()}
    inputs["position"] = mb.placeholder((1,), dtype=types.int32)
    cache = (2 * spec.num_layers, spec.num_kv_heads, context, spec.head_dim)
    inputs["kv_cache"] = mb.state_tensor_placeholder(cache, dtype=types.fp16)
    with mil.Function(inputs, opset_version=mil.ct.target.iOS18) as function:
        ops = AneOps(mil, store, spec, max_dim)
        ops.start_decoder(function.inputs)
        logits = decoder(ops, ops.start(function.inputs["embeddings"]), spec)
        parts = logits if isinstance(logits, list) else [logits]
        names = ["logits"] if len(parts) == 1 else [f"logits_{i}" for i in range(len(parts))]
        function.set_outputs([ops.finish(part, name) for part, name in zip(parts, names, strict=True)])
    return function


def write_embedding(path: Path, table: QTensor) -> dict[str, Any]:
    """The embedding table as one file to map into memory: codes row by row, then fp16 scales at a multiple of
    64.

    int4 codes are two's complement, two to a byte, the first in the low half. Returns kind, shape and
    offsets.
    """
    rows, columns = table.codes.shape
    kind = "fp16" if table.scale is None else table.kind
    with path.open("wb") as stream:
        step = max(1, (8 << 20) // columns)
        for start in range(0, rows, step):
            part = table.codes[start : start + step]
            stream.write(_table_bytes(part, kind).tobytes())
        entry: dict[str, Any] = {"kind": kind, "shape": [rows, columns], "codes": [0, stream.tell()]}
        if table.scale is not None:
            stream.write(bytes(-stream.tell() % _ALIGN))
            start = stream.tell()
            stream.write(np.ascontiguousarray(table.scale).tobytes())
            entry["scale"] = [start, stream.tell() - start]
            entry["scale_shape"] = list(table.scale.shape)
    return entry


def _table_bytes(codes: npt.NDArray[Any], kind: str) -> npt.NDArray[Any]:
    if kind == "fp16":
        return half(codes, "decoder.embed.weight")
    codes = codes.astype(np.int8, copy=False)
    if kind == "int4":
        nibbles = codes.view(np.uint8) & 15
        return nibbles[:, ::2] | nibbles[:, 1::2] << 4
    return codes
