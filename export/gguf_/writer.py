"""Write model.gguf and mmproj.gguf: one tensor in memory at a time, codes and scales as the quantizer chose."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from edgevlm.bundle.qtensor import QTensor
from edgevlm.errors import EdgeVLMError
from edgevlm.export.gguf_ import metadata
from edgevlm.export.gguf_.blocks import nbytes, pack
from edgevlm.export.gguf_.layout import Entry, decoder_entries, mmproj_entries
from edgevlm.export.gguf_.tokenizer import read_vocabulary
from edgevlm.export.gguf_.validate import check_model, validate_gguf
from edgevlm.export.quantize.recipe import Recipe, is_linear
from edgevlm.inputs.spec import ImageSpec, PromptSpec
from edgevlm.models.llama import rope_factors
from edgevlm.models.model import ModelSpec
from edgevlm.models.ops import Weights
from edgevlm.runtimes.gguf import ROPE_FACTORS, rope_order
from edgevlm.types import Progress

MODEL, MMPROJ = "model.gguf", "mmproj.gguf"


def write_gguf(
    folder: Path,
    spec: ModelSpec,
    weights: Weights,
    recipe: Recipe,
    image: ImageSpec,
    prompt: PromptSpec,
    tokenizer_json: Path,
    quantized: Callable[[str], QTensor],
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write both files into `folder`, check them, and only then give them their names.

    `quantized(name)` is the QTensor of a linear weight by its canonical name; norms, biases, positions and the patch
    convolution are read from `weights` as float32. progress(what, done, total) counts tensors.
    Returns the target's manifest entry: the files, llama.cpp's names for what they hold, bytes by tensor type.
    Raises EdgeVLMError when llama.cpp cannot hold this model or this tokenizer.
    """
    check_model(spec)
    vocabulary = read_vocabulary(tokenizer_json, spec.decoder.vocab_size)
    texts, pictures = decoder_entries(spec, weights, recipe), mmproj_entries(spec, weights, recipe)
    model, mmproj = folder / MODEL, folder / MMPROJ
    parts = [path.with_name(f"{path.name}.part") for path in (model, mmproj)]
    folder.mkdir(parents=True, exist_ok=True)
    total, done = len(texts) + len(pictures), 0

    def data(entry: Entry) -> np.ndarray[Any, Any]:
        nonlocal done
        if progress:
            progress("gguf", done, total)
        done += 1
        return _tensor(entry, spec, weights, quantized)

    try:
        writer = GGUFWriter(parts[0], "llama")
        metadata.add_decoder(writer, spec, recipe)
        metadata.add_tokenizer(writer, vocabulary, prompt)
        metadata.add_own(writer, image, prompt)
        _write(writer, texts, data)
        writer = GGUFWriter(parts[1], "clip")
        metadata.add_vision(writer, spec, recipe, image)
        metadata.add_own(writer, image, prompt)
        _write(writer, pictures, data)
        validate_gguf(parts[0], parts[1], spec)
        for part, path in zip(parts, (model, mmproj), strict=True):
            os.replace(part, path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    if progress:
        progress("gguf", total, total)
    sizes: dict[str, int] = {}
    for entry in texts + pictures:
        sizes[entry.kind.name] = sizes.get(entry.kind.name, 0) + nbytes(entry.kind, entry.shape)
    return {
        "model": f"{folder.name}/{MODEL}",
        "mmproj": f"{folder.name}/{MMPROJ}",
        "architecture": "llama",
        "projector_type": "idefics3",
        "bytes": sizes,
    }


def _tensor(
    entry: Entry, spec: ModelSpec, weights: Weights, quantized: Callable[[str], QTensor]
) -> np.ndarray[Any, Any]:
    """The bytes of one tensor. Blocks run along a row, so moving rows changes no bit of any value."""
    if entry.weight == ROPE_FACTORS:
        tensor = QTensor("fp32", rope_factors(spec.decoder))
    elif is_linear(entry.weight):
        tensor = quantized(entry.weight)
    else:
        tensor = QTensor("fp32", np.ascontiguousarray(weights.read(entry.weight), np.float32))
    if tensor.codes.shape != entry.shape:
        raise EdgeVLMError(
            f"The weight '{entry.weight}' has the shape {tensor.codes.shape}, but config.json implies {entry.shape}: "
            "download the checkpoint again."
        )
    order = rope_order(entry.weight, spec.decoder)
    if order is not None:
        scale = None if tensor.scale is None else tensor.scale[order]
        tensor = QTensor(tensor.kind, tensor.codes[order], scale)
    return pack(tensor, entry.kind)


def _write(writer: GGUFWriter, entries: list[Entry], data: Callable[[Entry], np.ndarray[Any, Any]]) -> None:
    try:
        for entry in entries:
            writer.add_tensor_info(
                entry.name, entry.shape, np.dtype(np.float32), nbytes(entry.kind, entry.shape), entry.kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry in entries:
            writer.write_tensor_data(data(entry))
    finally:
        writer.close()
