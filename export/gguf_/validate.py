"""Check a GGUF pair for everything that llama.cpp would load silently wrong (found by probing its loader).

A missing bias, norm or marker token, or a vision tower with equal widths, loads without an error and answers nonsense;
a missing scale factor aborts the process. None of it may leave the exporter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.errors import EdgeVLMError
from edgevlm.export.gguf_.layout import Entry, decoder_entries, mmproj_entries
from edgevlm.export.gguf_.tokenizer import Vocabulary
from edgevlm.export.quantize.recipe import is_linear, make_recipe
from edgevlm.models.model import ModelSpec
from edgevlm.runtimes.gguf import GgufFile, gguf_name

_VOCABULARY = ("tokens", "token_type", "merges", "pre", "eos_token_id")
_MARKERS = ("<fake_token_around_image>", "<global-img>", "\n", "\n\n")


def check_model(spec: ModelSpec) -> None:
    """Refuse a model that llama.cpp's `llama` and `idefics3` code cannot compute."""
    vision, scale = spec.vision, spec.projector.scale_factor
    reasons = [
        (
            spec.projector.kind != "pixel_shuffle",
            f"its projector is '{spec.projector.kind}', expected 'pixel_shuffle'",
        ),
        (scale < 2, f"its projector shuffles by {scale}, and llama.cpp's idefics3 type needs 2 or more"),
        (
            vision.num_channels != 3,
            f"its pictures have {vision.num_channels} channels, and llama.cpp feeds 3",
        ),
        (
            vision.activation != "gelu_tanh",
            f"its vision tower uses {vision.activation}, and llama.cpp has GELU-tanh only",
        ),
        (
            vision.intermediate_size == vision.hidden_size,
            f"its vision feed-forward width equals its hidden width ({vision.hidden_size}), in which case llama.cpp "
            "takes the two feed-forward matrices for each other",
        ),
        (spec.decoder.head_dim % 2 == 1, f"its head size {spec.decoder.head_dim} is odd"),
    ]
    for wrong, reason in reasons:
        if wrong:
            raise EdgeVLMError(f"The model cannot be written as GGUF: {reason}; use another target.")


def validate_gguf(model: Path, mmproj: Path, spec: ModelSpec) -> None:
    """Compare both files with `spec`, key by key and tensor by tensor; EdgeVLMError names the first thing wrong."""
    check_model(spec)
    fp32 = make_recipe("fp32")
    file = GgufFile(model)
    _check_keys(file, _decoder_keys(spec))
    _check_vocabulary(file, spec)
    _check_tensors(file, decoder_entries(spec, _Biases(file), fp32))
    file = GgufFile(mmproj)
    _check_keys(file, _vision_keys(spec))
    _check_pictures(file)
    _check_tensors(file, mmproj_entries(spec, _Biases(file), fp32))


class _Biases(Container[str]):
    """Which biases to expect: SigLIP has every one, a decoder has those that the file has."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file

    def __contains__(self, name: object) -> bool:
        weight = str(name)
        return weight.startswith("vision.") or gguf_name(weight) in self._file.tensors


def _decoder_keys(spec: ModelSpec) -> dict[str, Any]:
    s = spec.decoder
    return {
        "general.architecture": "llama",
        "llama.context_length": s.context_length,
        "llama.embedding_length": s.hidden_size,
        "llama.block_count": s.num_layers,
        "llama.feed_forward_length": s.intermediate_size,
        "llama.attention.head_count": s.num_heads,
        "llama.attention.head_count_kv": s.num_kv_heads,
        "llama.attention.key_length": s.head_dim,
        "llama.attention.value_length": s.head_dim,
        "llama.attention.layer_norm_rms_epsilon": np.float32(s.rms_norm_eps),
        "llama.rope.dimension_count": s.head_dim,
        "llama.rope.freq_base": np.float32(s.rope_theta),
        "llama.vocab_size": s.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.add_bos_token": False,
    }


def _vision_keys(spec: ModelSpec) -> dict[str, Any]:
    s = spec.vision
    return {
        "general.architecture": "clip",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "idefics3",
        "clip.use_gelu": True,
        "clip.vision.image_size": s.image_size,
        "clip.vision.patch_size": s.patch_size,
        "clip.vision.embedding_length": s.hidden_size,
        "clip.vision.feed_forward_length": s.intermediate_size,
        "clip.vision.block_count": s.num_layers,
        "clip.vision.attention.head_count": s.num_heads,
        "clip.vision.attention.layer_norm_epsilon": np.float32(s.layer_norm_eps),
        "clip.vision.projection_dim": spec.decoder.hidden_size,
        "clip.vision.projector.scale_factor": spec.projector.scale_factor,
    }


def _check_keys(file: GgufFile, expected: dict[str, Any]) -> None:
    for key, value in expected.items():
        if key not in file.keys:
            raise _wrong(file, f"the key {key} is missing")
        if file.keys[key] != value:
            raise _wrong(file, f"the key {key} is {file.keys[key]!r}, expected {value!r}")


def _check_pictures(file: GgufFile) -> None:
    for key in ("clip.vision.image_mean", "clip.vision.image_std"):
        values = file.keys.get(key) or []
        if len(values) != 3 or not np.isfinite(values).all() or (key.endswith("std") and 0 in values):
            raise _wrong(file, f"the key {key} is {values}, expected 3 numbers")
    longest, side = file.keys.get("clip.vision.preproc_image_size", 0), file.keys["clip.vision.image_size"]
    if longest < side:
        raise _wrong(file, f"the key clip.vision.preproc_image_size is {longest}, expected {side} or more")


def _check_vocabulary(file: GgufFile, spec: ModelSpec) -> None:
    for key in (*(f"tokenizer.ggml.{name}" for name in _VOCABULARY), "tokenizer.chat_template"):
        if not file.keys.get(key) and file.keys.get(key) != 0:
            raise _wrong(file, f"the key {key} is missing")
    tokens, types = file.keys["tokenizer.ggml.tokens"], file.keys["tokenizer.ggml.token_type"]
    if len(tokens) != spec.decoder.vocab_size or len(types) != len(tokens):
        raise _wrong(
            file,
            f"{len(tokens)} tokens and {len(types)} types stand for {spec.decoder.vocab_size} embeddings",
        )
    if len(set(tokens)) != len(tokens):
        raise _wrong(file, f"the token {Counter(tokens).most_common(1)[0][0]!r} appears more than once")
    for key in ("bos", "eos", "eot", "padding"):
        if file.keys.get(f"tokenizer.ggml.{key}_token_id", 0) >= len(tokens):
            raise _wrong(file, f"tokenizer.ggml.{key}_token_id is outside the vocabulary")
    vocabulary = Vocabulary(tokens, types, [], "")
    for text in _MARKERS:
        if vocabulary.single(text) is None:
            raise _wrong(file, f"the tokenizer has no single token for {text!r}, where llama.cpp would insert token -1")


def _check_tensors(file: GgufFile, entries: list[Entry]) -> None:
    for entry in entries:
        tensor = file.tensors.get(entry.name)
        if tensor is None:
            raise _wrong(file, f"the tensor {entry.name} is missing")
        if tensor.shape != entry.shape:
            raise _wrong(file, f"the tensor {entry.name} has the shape {tensor.shape}, expected {entry.shape}")
        if tensor.kind != "F32" and not is_linear(entry.weight):
            raise _wrong(file, f"the tensor {entry.name} is {tensor.kind}, expected F32")
    if unknown := sorted(set(file.tensors) - {entry.name for entry in entries}):
        raise _wrong(file, f"the tensor {unknown[0]} does not belong to this model")


def _wrong(file: GgufFile, reason: str) -> EdgeVLMError:
    name = file.path.name.removesuffix(".part")
    return EdgeVLMError(f"{name} would not work in llama.cpp: {reason}; export it again, or use another target.")
