"""SigLIP vision tower (Zhai et al. 2023, arXiv 2303.15343), as in transformers' SmolVLMVisionTransformer."""

from __future__ import annotations

from edgevlm.models.ops import Ops, X
from edgevlm.models.spec import VisionSpec


def vision_tower(ops: Ops, pixels: X, spec: VisionSpec) -> X:
    """Normalized tiles (T, 3, S, S) to patch states (T, P, D)."""
    x = ops.patch_embed(pixels, "vision.patch_embedding", spec.patch_size)
    x = ops.add_table(x, "vision.position_embedding")
    for i in range(spec.num_layers):
        x = _block(ops, x, f"vision.layers.{i}", spec)
    return ops.layer_norm(x, "vision.post_norm", spec.layer_norm_eps) if spec.post_norm else x


def _block(ops: Ops, x: X, w: str, spec: VisionSpec) -> X:
    h = ops.layer_norm(x, f"{w}.norm1", spec.layer_norm_eps)
    qkv = ops.linear(h, f"{w}.q", f"{w}.k", f"{w}.v")
    x = ops.add(x, ops.linear(ops.attention(qkv, spec.num_heads), f"{w}.o"))
    h = ops.layer_norm(x, f"{w}.norm2", spec.layer_norm_eps)
    h = ops.gelu(ops.linear(h, f"{w}.fc1"), spec.activation)
    return ops.add(x, ops.linear(h, f"{w}.fc2"))
