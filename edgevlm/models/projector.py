"""Projectors: patch states to decoder embeddings."""

from __future__ import annotations

from edgevlm.models.ops import Ops, X
from edgevlm.models.spec import ProjectorSpec


def projector(ops: Ops, x: X, spec: ProjectorSpec) -> X:
    """Patch states (T, P, D) to features (T, P / scale^2, decoder hidden size): Idefics3's connector or LLaVA's."""
    if spec.kind == "mlp":
        return ops.linear(ops.gelu(ops.linear(x, "projector.linear_1"), spec.activation), "projector.linear_2")
    return ops.linear(ops.pixel_shuffle(x, spec.scale_factor), "projector.linear")
