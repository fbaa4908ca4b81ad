"""Write model.gguf and mmproj.gguf: one tensor in memory at a time, codes and scales as the quantizer chose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGUFWriter

from edgevlm.bundle.qtensor import BLOCK, QTensor
from edgevlm.bundle.targets import GgufTarget
from edgevlm.errors import EdgeVLMError
from edgevlm.export.gguf_ import metadata
from edgevlm.export.gguf_.archs import ProjectorType, TextArch, projector_type, text_arch, why_no_pictures
from edgevlm.export.gguf_.blocks import nbytes, pack
from edgevlm.export.gguf_.entries import Entry, decoder_entries, mmproj_entries
from edgevlm.export.gguf_.pre_tokenizers import APART
from edgevlm.export.gguf_.tokenizer import Vocabulary, read_vocabulary
from edgevlm.export.gguf_.validate import validate_gguf
from edgevlm.export.quantize.recipe import Recipe
from edgevlm.inputs.spec import ImageSpec, PromptSpec
from edgevlm.models.model import ModelSpec
from edgevlm.models.ops import Weights
from edgevlm.runtimes.llama.names import PROJECTORS, TEXT
from edgevlm.runtimes.llama.table import Table
from edgevlm.verify.stock import stock_note

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
) -> GgufTarget:
    """Write both files into `folder`, and check them.

    `quantized(name)` is the QTensor of a linear weight by its canonical name; norms, biases, positions and the patch
    convolution are read from `weights` as float32.
    A decoder that llama.cpp knows is written alone where it does not know the tower: another engine then encodes.
    Returns the target's manifest entry: the files, llama.cpp's names for what they hold, bytes by tensor type, why
    there is no mmproj where there is none, and what stock llama.cpp does otherwise with pictures. Raises EdgeVLMError
    when llama.cpp cannot hold the decoder or the tokenizer.
    """
    arch, projector, vocabulary, reason = plan(spec, tokenizer_json, image, prompt)
    texts = decoder_entries(spec, arch, recipe)
    line_break = vocabulary.single(prompt.picture.line_break)
    pictures = mmproj_entries(spec, projector, recipe, line_break) if projector else []
    paths = [folder / MODEL, *([folder / MMPROJ] if projector else [])]
    folder.mkdir(parents=True, exist_ok=True)

    def data(entry: Entry, table: Table) -> np.ndarray[Any, Any]:
        return _tensor(entry, table, spec, weights, quantized)

    writer = GGUFWriter(paths[0], arch.name)
    metadata.add_model(writer, "model", spec.name, recipe.decoder.kind, arch.keys(spec.decoder))
    metadata.add_tokenizer(writer, vocabulary, prompt)
    metadata.add_own(writer, image, prompt)
    _write(writer, texts, lambda entry: data(entry, TEXT[arch.name]))
    if projector:
        table = PROJECTORS[projector.name]
        writer = GGUFWriter(paths[1], "clip")
        metadata.add_model(writer, "mmproj", spec.name, recipe.vision.kind, projector.keys(spec, image))
        metadata.add_own(writer, image, prompt)
        _write(writer, pictures, lambda entry: data(entry, table))
    validate_gguf(paths[0], paths[1] if projector else None, spec, image, prompt)
    sizes: dict[str, int] = {}
    for entry in texts + pictures:
        sizes[entry.kind.name] = sizes.get(entry.kind.name, 0) + nbytes(entry.kind, entry.shape)
    return GgufTarget(
        model=f"{folder.name}/{MODEL}",
        mmproj=f"{folder.name}/{MMPROJ}" if projector else None,
        architecture=arch.name,
        projector_type=projector.name if projector else None,
        bytes=sizes,
        no_pictures=reason,
        alone=_alone(projector, vocabulary, image),
    )


def _alone(projector: ProjectorType | None, vocabulary: Vocabulary, image: ImageSpec) -> str | None:
    words = APART.get(vocabulary.pre)
    notes = [stock_note(projector.name, image)] if projector else []
    notes += [f"llama.cpp without edgevlm {words}, which changes their tokens."] if words else []
    return " ".join(notes) or None


class Plan(NamedTuple):
    """What llama.cpp computes of a model. no_pictures: why it has no projector, where it has none."""

    arch: TextArch
    projector: ProjectorType | None
    vocabulary: Vocabulary
    no_pictures: str | None


def plan(
    spec: ModelSpec, tokenizer_json: Path, image: ImageSpec | None = None, prompt: PromptSpec | None = None
) -> Plan:
    """EdgeVLMError where llama.cpp cannot hold the decoder or the tokenizer. image, prompt: as `projector_type`'s."""
    arch, projector = text_arch(spec.decoder), projector_type(spec, image, prompt)
    vocabulary = read_vocabulary(tokenizer_json, spec.decoder.vocab_size)
    breaks = [prompt.picture.line_break] if projector and projector.line_break and prompt else []
    reason = why_no_pictures(spec) or _missing_marker(projector, vocabulary, breaks)
    if reason is None:
        return Plan(arch, projector, vocabulary, None)
    return Plan(arch, None, vocabulary, f"llama.cpp cannot encode this model's pictures: {reason}")


def _missing_marker(projector: ProjectorType | None, vocabulary: Vocabulary, breaks: list[str]) -> str | None:
    """llama.cpp puts such texts around pictures itself, and inserts token -1 for one that is no single token."""
    markers = [*projector.markers, *breaks] if projector else []
    missing = [text for text in markers if vocabulary.single(text) is None]
    return f"its tokenizer has no single token for {missing[0]!r}" if missing else None


def _tensor(
    entry: Entry, table: Table, spec: ModelSpec, weights: Weights, quantized: Callable[[str], QTensor]
) -> np.ndarray[Any, Any]:
    """The bytes of one tensor. Blocks run along a row, so moving rows changes no bit of any value."""
    if entry.constant is not None:
        return pack(entry.constant, entry.kind)
    if entry.row is not None:
        embed, row = quantized(entry.weights[0]), slice(entry.row, entry.row + 1)
        scale = None if embed.scale is None else embed.scale[row]
        return pack(QTensor(embed.kind, embed.codes[row], scale), entry.kind).reshape(-1)
    parts = []
    for weight in entry.weights:
        if entry.linear:
            tensor = quantized(weight)
        else:
            values = weights.read(weight)
            if entry.frame is not None:
                values = values.reshape(len(values), 3, -1, *entry.shape[2:])[:, :, entry.frame]
            tensor = QTensor("fp32", np.ascontiguousarray(values, np.float32))
        order = table.order(weight, spec)
        if order is not None:
            scale = None if tensor.scale is None else tensor.scale[order]
            tensor = QTensor(tensor.kind, tensor.codes[order], scale)
        columns = table.columns(weight, spec)
        if table.turns(weight) or (table.scatters(weight) and (tensor.kind == "int4" or table.kernel)):
            half = tensor.kind == "fp16" and not table.kernel
            tensor = QTensor("fp16" if half else "fp32", tensor.dequantize())
        tensor = QTensor(tensor.kind, tensor.codes.T) if table.turns(weight) else tensor
        if columns is not None:
            scale, by_block = tensor.scale, tensor.scale is not None and tensor.scale.shape[1] > 1
            scale = scale[:, columns[::BLOCK] // BLOCK] if scale is not None and by_block else scale
            tensor = QTensor(tensor.kind, tensor.codes[:, columns], scale)
        parts.append(tensor)
    if len({tensor.kind for tensor in parts}) > 1:
        parts = [QTensor("fp32", tensor.dequantize()) for tensor in parts]
    size, rows = (sum(count) for count in zip(*((part.codes.size, len(part.codes)) for part in parts), strict=True))
    ahead = entry.shape[:-1] if table.planes_of(weight) else entry.shape[:1]
    if (size, rows) != (np.prod(entry.shape), np.prod(ahead)):
        raise EdgeVLMError(
            f"The weight '{entry.weights[0]}' has the shape {parts[0].codes.shape}, but config.json implies "
            f"{entry.shape}: download the checkpoint again."
        )
    packed = [pack(tensor, entry.kind) for tensor in parts]
    whole = np.concatenate(packed) if len(packed) > 1 else packed[0]
    by_head = table.by_head(entry.weights[0], spec)
    return whole if by_head is None else whole[by_head]


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
