"""The CoreML target: `coreml/` of a bundle and its manifest entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgevlm.bundle.qtensor import QTensor
from edgevlm.bundle.targets import CoreMLTarget
from edgevlm.export.coreml_.embedding import write_embedding
from edgevlm.export.coreml_.functions import decoder_functions, vision_function
from edgevlm.export.coreml_.options import ANE_ROWS, CoreMLOptions, check_recipe
from edgevlm.export.coreml_.package import Mil, load_coremltools, save_package
from edgevlm.export.coreml_.store import Unread, WeightStore
from edgevlm.export.quantize.recipe import Recipe
from edgevlm.io.records import from_dict
from edgevlm.models.components import Component, components
from edgevlm.models.model import ModelSpec
from edgevlm.models.ops import Weights
from edgevlm.models.towers.vit import Vit
from edgevlm.runtimes.coreml.inputs import MASK_VALUE


def write_coreml(
    folder: Path,
    spec: ModelSpec,
    weights: Weights,
    recipe: Recipe,
    quantized: Callable[[str], QTensor],
    options: CoreMLOptions | None = None,
) -> CoreMLTarget:
    """Write VisionEncoder.mlpackage, Decoder.mlpackage and embedding.bin into `folder`, a bundle's coreml/.

    quantized: the QTensor of a linear weight by canonical name; what recipe keeps in fp32 is stored in fp16, the type
    that CoreML computes in. Returns the manifest's entry: files, functions, inputs, outputs, states, and under
    "weights" the operation and rows that hold each canonical matrix. Raises EdgeVLMError when coremltools is missing, a
    recipe is refused, a weight does not fit fp16, or the model has what CoreML programs do not hold.
    """
    options = options or CoreMLOptions()
    profile = options.profile
    check_recipe(recipe, profile)
    mil = load_coremltools()
    entries: dict[str, dict[str, Any]] = {}
    places: dict[str, dict[str, Any]] = {}
    for component in components(spec):
        store = WeightStore(weights, quantized)
        if component.name == "embed_tokens":
            for name in ("embedding", *["per_layer_embedding"] * bool(spec.decoder.per_layer)):
                weight = f"decoder.{name.removesuffix('ding')}.weight"
                table = write_embedding(folder / f"{name}.bin", quantized(weight), weight)
                entries[name] = {"file": f"coreml/{name}.bin", **table}
            continue
        key, file = _PACKAGES[component.name]
        functions, entry = _functions(mil, store, component, spec, options)
        save_package(mil, functions, folder / file)
        entries[key] = {"file": f"coreml/{file}", **entry}
        places |= {name: {"package": f"coreml/{file}", "parts": parts} for name, parts in store.places.items()}
    entry = {
        "profile": profile,
        "compute_units": {"gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE"}[profile],
        "minimum_deployment_target": "iOS18",
        "precision": "fp16",
        **entries,
        "weights": places,
    }
    return from_dict(CoreMLTarget, _plain(entry), "coreml")


_PACKAGES = {"vision_encoder": ("vision", "VisionEncoder.mlpackage"), "decoder": ("decoder", "Decoder.mlpackage")}


def check_coreml(spec: ModelSpec, options: CoreMLOptions) -> None:
    """Raise EdgeVLMError for a model that the packages cannot hold: they are built, of weights without values.

    Of layers of one kind the first is built; the others would take seconds and be refused for the same.
    """
    mil, spec = load_coremltools(), one_of_each(spec)
    for component in components(spec):
        if component.name in _PACKAGES:
            _functions(mil, Unread(spec), component, spec, options)


def one_of_each(spec: ModelSpec) -> ModelSpec:
    """A model with one layer of each kind; all of a part's, where values are taken behind layers by their number."""
    vision, text = spec.vision, spec.decoder
    if type(vision) is Vit and not (vision.taps or vision.deepstack):
        vision = replace(vision, num_layers=1)
    if not text.deepstack:
        text = replace(text, layers=tuple(dict.fromkeys(text.layers)))
    return replace(spec, vision=vision, decoder=text)


def _functions(
    mil: Mil, store: WeightStore, component: Component, spec: ModelSpec, options: CoreMLOptions
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A package's functions by name, and its entry."""
    if component.name == "vision_encoder":
        function, entry = vision_function(mil, store, component, spec.vision, options.profile, options.image_side)
        return {"main": function}, entry
    contexts = options.lengths(spec.decoder.context_length)
    together = spec.image_tokens if spec.decoder.mask == "image" and isinstance(spec.vision, Vit) else None
    functions, entry = decoder_functions(
        mil, store, component, spec.decoder, options.profile, contexts, ANE_ROWS, together
    )
    rope = "cos rows are [cos, cos], sin rows are [-sin, sin]"
    return functions, {**entry, "mask_value": MASK_VALUE, "rope": rope}


def _plain(value: Any) -> Any:
    """Tuples as the lists that JSON has."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
