"""Model families: how a checkpoint's config and tensor names map to the spec and the weight tree."""

from __future__ import annotations

from collections.abc import Callable

from edgevlm.errors import EdgeVLMError
from edgevlm.export.checkpoint import Checkpoint, Weights
from edgevlm.export.families import smolvlm
from edgevlm.spec import ModelSpec

# config.json's model_type -> reader. SmolVLM 1 says "idefics3", SmolVLM2 says "smolvlm".
FAMILIES: dict[str, Callable[[Checkpoint], tuple[ModelSpec, Weights]]] = {
    "smolvlm": smolvlm.read,
    "idefics3": smolvlm.read,
}


def read_model(checkpoint: Checkpoint) -> tuple[ModelSpec, Weights]:
    """What the checkpoint is, and its weights under edgevlm's canonical names (see docs/checkpoints.md).

    Raises EdgeVLMError when the family or one of its options is not supported, and when a tensor is missing,
    unknown, or of another shape than the config says.
    """
    kind = checkpoint.config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise EdgeVLMError(
            f"{checkpoint.name} is of the model family {kind!r}, which edgevlm does not support: "
            f"supported are {', '.join(sorted(FAMILIES))} (SmolVLM, SmolVLM2, Idefics3)."
        )
    return FAMILIES[kind](checkpoint)


__all__ = ["FAMILIES", "Weights", "read_model"]
