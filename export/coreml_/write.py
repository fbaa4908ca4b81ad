"""The CoreML target: `coreml/` of a bundle and its manifest entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.bundle.qtensor import QTensor
from edgevlm.errors import EdgeVLMError
from edgevlm.export.coreml_.embedding import write_embedding
from edgevlm.export.coreml_.functions import decoder_functions, vision_function
from edgevlm.export.coreml_.package import load_coremltools, save_package
from edgevlm.export.coreml_.store import Store
from edgevlm.export.quantize.recipe import Recipe
from edgevlm.models.components import components
from edgevlm.models.model import ModelSpec
from edgevlm.models.ops import Weights
from edgevlm.runtimes.coreml.inputs import MASK_VALUE

PROFILES = ("gpu", "ane")
CONTEXT = 2048  # positions of the `gpu` state, which CoreML fixes at export and allocates at once
ANE_CONTEXTS = (512, 1024, 2048)  # decoding costs O(context) on the Neural Engine, so an app picks the one it needs
ANE_ROWS = 32  # prompt rows per call: more than 32 written to a state at once fails there (coremltools #2553)


@dataclass(frozen=True)
class CoreMLOptions:
    """contexts: positions of the KV cache, one for `gpu`; empty for the profile's own. image_side: pixels per side of
    the square picture that an `ane` encoder of any picture size has room for."""

    profile: str = "gpu"
    contexts: tuple[int, ...] = ()
    image_side: int = 448

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise EdgeVLMError(f"CoreML profile '{self.profile}' does not exist: choose one of {', '.join(PROFILES)}.")
        if self.profile == "gpu" and len(self.contexts) > 1:
            raise EdgeVLMError("The CoreML profile 'gpu' holds one context length: give one, or use the profile 'ane'.")
        if any(context < 32 or context % 32 for context in self.contexts):
            raise EdgeVLMError("CoreML context lengths should be multiples of 32 (coremltools #2631): round them up.")

    def lengths(self, context_length: int) -> tuple[int, ...]:
        """Context lengths to export for a model of that many positions."""
        longest = max(32, context_length // 32 * 32)
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


def write_coreml(
    folder: Path,
    spec: ModelSpec,
    weights: Weights,
    recipe: Recipe,
    quantized: Callable[[str], QTensor],
    options: CoreMLOptions | None = None,
) -> dict[str, Any]:
    """Write VisionEncoder.mlpackage, Decoder.mlpackage and embedding.bin into `folder`, a bundle's coreml/.

    quantized: the QTensor of a linear weight by canonical name; what recipe keeps in fp32 is stored in fp16, the type
    that CoreML computes in. Returns the manifest's entry: files, functions, inputs, outputs, states, and under
    "weights" the operation and rows that hold each canonical matrix. Raises EdgeVLMError when coremltools is missing, a
    recipe is refused, a weight does not fit fp16, or the model has what CoreML programs do not hold.
    """
    options = options or CoreMLOptions()
    profile, d = options.profile, spec.decoder
    check_recipe(recipe, profile)
    mil = load_coremltools()
    entries: dict[str, dict[str, Any]] = {}
    places: dict[str, dict[str, Any]] = {}
    for component in components(spec):
        store = Store(weights, quantized)
        if component.name == "embed_tokens":
            table = write_embedding(folder / "embedding.bin", quantized("decoder.embed.weight"))
            entries["embedding"] = {"file": "coreml/embedding.bin", **table}
            continue
        if component.name == "vision_encoder":
            key, file = "vision", "VisionEncoder.mlpackage"
            function, entry = vision_function(mil, store, component, spec.vision, profile, options.image_side)
            functions = {"main": function}
        else:
            key, file = "decoder", "Decoder.mlpackage"
            contexts = options.lengths(d.context_length)
            functions, entry = decoder_functions(mil, store, component, d, profile, contexts, ANE_ROWS)
            entry["mask_value"] = MASK_VALUE
            entry["rope"] = "cos rows are [cos, cos], sin rows are [-sin, sin]"
        save_package(mil, functions, folder / file)
        entries[key] = {"file": f"coreml/{file}", **entry}
        places |= {name: {"package": f"coreml/{file}", "parts": parts} for name, parts in store.places.items()}
    return {
        "profile": profile,
        "compute_units": {"gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE"}[profile],
        "minimum_deployment_target": "iOS18",
        "precision": "fp16",
        "vision": entries["vision"],
        "decoder": entries["decoder"],
        "embedding": entries["embedding"],
        "weights": places,
    }
