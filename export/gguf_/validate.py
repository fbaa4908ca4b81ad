"""Check a GGUF pair for everything that llama.cpp would load silently wrong (found by probing its loader).

A missing bias, norm or marker token loads without an error and answers nonsense; a missing scale factor aborts the
process. None of it may leave the exporter.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.errors import EdgeVLMError
from edgevlm.export.gguf_.archs import projector_type, text_arch
from edgevlm.export.gguf_.archs.parts import Value
from edgevlm.export.gguf_.entries import Entry, decoder_entries, mmproj_entries
from edgevlm.export.gguf_.tokenizer import Vocabulary
from edgevlm.export.quantize.recipe import make_recipe
from edgevlm.inputs.spec import ImageSpec, PromptSpec
from edgevlm.models.model import ModelSpec
from edgevlm.runtimes.gguf import GgufFile

_VOCABULARY = ("tokens", "token_type", "pre", "eos_token_id")


def validate_gguf(model: Path, mmproj: Path | None, spec: ModelSpec, image: ImageSpec, prompt: PromptSpec) -> None:
    """Compare both files with `spec`, key by key and tensor by tensor; EdgeVLMError names the first thing wrong."""
    fp32, arch, projector = make_recipe("fp32"), text_arch(spec.decoder), projector_type(spec, image, prompt)
    file = GgufFile(model)
    _check_keys(file, arch.keys(spec.decoder) | {"tokenizer.ggml.add_bos_token": prompt.add_bos})
    vocabulary = _check_vocabulary(file, spec)
    _check_tensors(file, decoder_entries(spec, arch, fp32))
    if mmproj is None or projector is None:
        return
    line_break = prompt.picture.line_break if projector.line_break else ""
    for text in (*projector.markers, *filter(None, [line_break])):
        if vocabulary.single(text) is None:
            raise _wrong(file, f"the tokenizer has no single token for {text!r}, where llama.cpp would insert token -1")
    file = GgufFile(mmproj)
    _check_keys(file, projector.keys(spec, image))
    _check_tensors(file, mmproj_entries(spec, projector, fp32, vocabulary.single(line_break)))


def _check_keys(file: GgufFile, expected: dict[str, Value]) -> None:
    for key, value in expected.items():
        if key not in file.keys:
            raise _wrong(file, f"the key {key} is missing")
        if _stored(file.keys[key]) != _stored(value):
            raise _wrong(file, f"the key {key} is {file.keys[key]!r}, expected {value!r}")


def _stored(value: Any) -> Any:
    """As a file holds it: floats have 32 bits."""
    if isinstance(value, list):
        return [_stored(item) for item in value]
    return np.float32(value) if isinstance(value, float) else value


def _check_vocabulary(file: GgufFile, spec: ModelSpec) -> Vocabulary:
    kind = file.keys.get("tokenizer.ggml.model")
    more = {"gpt2": "merges", "llama": "scores"}.get(str(kind))
    if more is None:
        raise _wrong(file, f"the key tokenizer.ggml.model is {kind!r}, expected 'gpt2' or 'llama'")
    for key in (*(f"tokenizer.ggml.{name}" for name in (*_VOCABULARY, more)), "tokenizer.chat_template"):
        if not file.keys.get(key) and file.keys.get(key) != 0:
            raise _wrong(file, f"the key {key} is missing")
    tokens, types = file.keys["tokenizer.ggml.tokens"], file.keys["tokenizer.ggml.token_type"]
    if len(tokens) != spec.decoder.vocab_size or len(types) != len(tokens):
        raise _wrong(
            file, f"{len(tokens)} tokens and {len(types)} types stand for {spec.decoder.vocab_size} embeddings"
        )
    if len(set(tokens)) != len(tokens):
        raise _wrong(file, f"the token {Counter(tokens).most_common(1)[0][0]!r} appears more than once")
    for key in ("bos", "eos", "eot", "padding"):
        if file.keys.get(f"tokenizer.ggml.{key}_token_id", 0) >= len(tokens):
            raise _wrong(file, f"tokenizer.ggml.{key}_token_id is outside the vocabulary")
    return Vocabulary(str(kind), tokens, types)


def _check_tensors(file: GgufFile, entries: list[Entry]) -> None:
    for entry in entries:
        tensor = file.tensors.get(entry.name)
        if tensor is None:
            raise _wrong(file, f"the tensor {entry.name} is missing")
        if tensor.shape != entry.shape:
            raise _wrong(file, f"the tensor {entry.name} has the shape {tensor.shape}, expected {entry.shape}")
        if tensor.kind != entry.kind.name and not entry.linear:
            raise _wrong(file, f"the tensor {entry.name} is {tensor.kind}, expected {entry.kind.name}")
    if unknown := sorted(set(file.tensors) - {entry.name for entry in entries}):
        raise _wrong(file, f"the tensor {unknown[0]} does not belong to this model")


def _wrong(file: GgufFile, reason: str) -> EdgeVLMError:
    name = file.path.name.removesuffix(".part")
    return EdgeVLMError(f"{name} would not work in llama.cpp: {reason}; export it again, or use another target.")
