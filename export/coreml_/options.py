"""Options of an export to CoreML, and combinations that are known to be wrong on its devices."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.errors import EdgeVLMError
from edgevlm.export.quantize.recipe import Recipe
from edgevlm.io.options import check_types

PROFILES = ("gpu", "ane")
CONTEXT = 2048  # positions of the `gpu` state, which CoreML fixes at export and allocates at once
ANE_CONTEXTS = (512, 1024, 2048)  # decoding costs O(context) on the Neural Engine, so an app picks the one it needs
ANE_ROWS = 32  # prompt rows per call: more than 32 written to a state at once fails there (coremltools #2553)
MAX_SIDE = 1792  # pixels per side of the largest square picture that a flexible encoder takes


@dataclass(frozen=True)
class CoreMLOptions:
    """contexts: positions of the KV cache, one for `gpu`; empty for the profile's own. image_side: pixels per side of
    the square picture that an `ane` encoder of any picture size has room for."""

    profile: str = "gpu"
    contexts: tuple[int, ...] = ()
    image_side: int = 448

    def __post_init__(self) -> None:
        check_types(self)
        if self.profile not in PROFILES:
            raise EdgeVLMError(f"CoreML profile '{self.profile}' does not exist: choose one of {', '.join(PROFILES)}.")
        if self.profile == "gpu" and len(self.contexts) > 1:
            raise EdgeVLMError("The CoreML profile 'gpu' holds one context length: give one, or use the profile 'ane'.")
        if any(context < 32 or context % 32 for context in self.contexts):
            raise EdgeVLMError("CoreML context lengths should be multiples of 32 (coremltools #2631): round them up.")
        if len(set(self.contexts)) < len(self.contexts):
            raise EdgeVLMError("A CoreML context length was given twice: give each once.")
        if not 1 <= self.image_side <= MAX_SIDE:
            raise EdgeVLMError(f"The image side is {self.image_side} pixels: give 1 to {MAX_SIDE}.")

    def lengths(self, context_length: int) -> tuple[int, ...]:
        """Context lengths to export for a model of that many positions."""
        longest = max(32, context_length // 32 * 32)
        if max(self.contexts, default=0) > longest:
            raise EdgeVLMError(
                f"A CoreML context of {max(self.contexts)} positions was asked for, and the model holds "
                f"{context_length}: give at most {longest}."
            )
        if self.profile == "gpu":
            return self.contexts or (min(CONTEXT, longest),)
        return self.contexts or tuple(c for c in ANE_CONTEXTS if c <= longest) or (longest,)


def check_recipe(recipe: Recipe, profile: str) -> None:
    """Refuse combinations that are known to be wrong on a device, with the reason and its source."""
    forms = {
        "vision": recipe.vision,
        "projector": recipe.projector,
        "decoder": recipe.decoder,
        "embed": recipe.embed,
    }
    if profile == "ane":
        for component, form in forms.items():
            if form.kind == "int4":
                raise EdgeVLMError(
                    f"The CoreML profile 'ane' cannot hold the {component} in int4: per-block weights are "
                    "wrong or crash on the Neural Engine (apple/coreai-models issues 279 and 55; coremltools' "
                    "guide to optimization asks for per-channel scales there); use --quantize palette6 or int8, or "
                    "the profile 'gpu'."
                )
            if form.kind == "palette4" and component == "decoder":
                raise EdgeVLMError(
                    "The CoreML profile 'ane' cannot hold the decoder in palette4: 4-bit palettes beside a state "
                    "crash or are wrong on the Neural Engine (coremltools issue 2716); use --decoder palette6 or int8."
                )
