"""Llama-type decoder (Touvron et al. 2023, arXiv 2302.13971) with grouped-query attention."""

from __future__ import annotations

import math

import numpy as np

from edgevlm.models.ops import Ops, X
from edgevlm.models.spec import DecoderSpec
from edgevlm.types import F32


def embed_tokens(ops: Ops, ids: X) -> X:
    return ops.embed(ids, "decoder.embed")


def decoder(ops: Ops, x: X, spec: DecoderSpec) -> X:
    """Embeddings (S, D) to logits of the last position; keys and values stay in the backend's cache."""
    eps = spec.rms_norm_eps
    h = ops.rms_norm(x, "decoder.layers.0.norm1", eps)
    for i in range(spec.num_layers):
        w = f"decoder.layers.{i}"
        qkv = ops.linear(h, f"{w}.q", f"{w}.k", f"{w}.v")
        x, h = ops.add_rms_norm(x, ops.linear(ops.cached_attention(qkv, i), f"{w}.o"), f"{w}.norm2", eps)
        h = ops.linear(ops.swiglu(ops.linear(h, f"{w}.gate", f"{w}.up")), f"{w}.down")
        following = f"decoder.layers.{i + 1}.norm1" if i + 1 < spec.num_layers else "decoder.norm"
        x, h = ops.add_rms_norm(x, h, following, eps)
    return ops.linear(ops.last_position(h), head_name(spec))


def head_name(spec: DecoderSpec) -> str:
    return "decoder.embed" if spec.tie_embeddings else "decoder.head"


def rope_tables(spec: DecoderSpec, length: int) -> tuple[F32, F32]:
    """cos and sin (length, head size / 2), in the float32 arithmetic of transformers' LlamaRotaryEmbedding."""
    frequencies = _frequencies(spec)
    if spec.rope_scaling is not None:
        frequencies = frequencies / rope_factors(spec)
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies[None, :]
    return np.cos(angles), np.sin(angles)


def rope_factors(spec: DecoderSpec) -> F32:
    """What scaling divides each frequency by, (head size / 2).

    Of transformers' _compute_llama3_parameters; llama.cpp reads these as the tensor rope_freqs.
    """
    frequencies, scaling = _frequencies(spec), spec.rope_scaling
    if scaling is None:
        return np.ones_like(frequencies)
    turns = scaling.original_context * frequencies / np.float32(2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0, 1)
    factors: F32 = (1 / ((1 - kept) / scaling.factor + kept)).astype(np.float32)
    return factors


def _frequencies(spec: DecoderSpec) -> F32:
    exponents = np.arange(0, spec.head_dim, 2, dtype=np.float32) / np.float32(spec.head_dim)
    frequencies: F32 = (1.0 / np.power(np.float32(spec.rope_theta), exponents)).astype(np.float32)
    return frequencies
