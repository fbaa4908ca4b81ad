"""Model families: how a checkpoint's config and tensor names map to the spec and the weight tree."""

from __future__ import annotations

from collections.abc import Callable

from edgevlm.checkpoint.checkpoint import Checkpoint, Weights
from edgevlm.checkpoint.families import llava, query, smolvlm
from edgevlm.checkpoint.families.parts import MappedWeights
from edgevlm.errors import EdgeVLMError
from edgevlm.models.spec import ModelSpec

# config.json's model_type -> reader. SmolVLM 1 says "idefics3", SmolVLM2 says "smolvlm".
FAMILIES: dict[str, Callable[[Checkpoint], tuple[ModelSpec, MappedWeights]]] = {
    "smolvlm": smolvlm.read,
    "idefics3": smolvlm.read,
    "llava": llava.read,
    "edgevlm_query": query.read,
}
EXPORTED = ("pixel_shuffle", "mlp")  # projectors that are described in macro-operations


def read_model(checkpoint: Checkpoint) -> tuple[ModelSpec, MappedWeights]:
    """What the checkpoint is, and its weights under edgevlm's canonical names (see docs/checkpoints.md).

    Raises EdgeVLMError when the family or one of its options is not supported, and when a tensor is missing,
    unknown, or of another shape than the config says.
    """
    spec, weights = read_checkpoint(checkpoint)
    if spec.projector.kind not in EXPORTED:
        raise EdgeVLMError(
            f"{checkpoint.name} has a {spec.projector.kind} as its projector, which can be trained but not exported: "
            "compose the model with --projector mlp, linear or pixel-shuffle."
        )
    return spec, weights


def read_checkpoint(checkpoint: Checkpoint) -> tuple[ModelSpec, MappedWeights]:
    """As `read_model`, for a checkpoint that is to be trained: its projector may be one that is not exported."""
    kind = checkpoint.config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise EdgeVLMError(
            f"{checkpoint.name} is of the model family {kind!r}, which edgevlm does not support: "
            f"supported are {', '.join(sorted(FAMILIES))} (SmolVLM, SmolVLM2, Idefics3, LLaVA with SigLIP and Llama)."
        )
    return FAMILIES[kind](checkpoint)


__all__ = ["FAMILIES", "Weights", "read_checkpoint", "read_model"]
