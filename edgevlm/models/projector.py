"""Projectors: patch states to decoder embeddings."""

from __future__ import annotations

from edgevlm.models.ops import Ops, X
from edgevlm.spec import ProjectorSpec


def projector(ops: Ops, x: X, spec: ProjectorSpec) -> X:
    """Patch states (T, P, D) to image features (T, P / scale^2, decoder hidden size), as in Idefics3's connector."""
    return ops.linear(ops.pixel_shuffle(x, spec.scale_factor), "projector.linear")
