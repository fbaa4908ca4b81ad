"""Where two computations of one model part: named results of the layers, in order, side by side."""

from __future__ import annotations

from typing import Any

from edgevlm.bundle.manifest import Bundle
from edgevlm.errors import install_hint
from edgevlm.inputs.layout import Layout, decoder_inputs
from edgevlm.inputs.preprocess import normalize
from edgevlm.models.decoder import decoder
from edgevlm.models.eager import EagerOps
from edgevlm.models.model import image_features
from edgevlm.models.spec import Norm
from edgevlm.models.states import States
from edgevlm.models.trace import TracingOps
from edgevlm.types import F32, U8
from edgevlm.verify.reference import Reference
from edgevlm.verify.report import Row, divergence
from edgevlm.verify.runtime import Case

# Largest divergence of a named value that rounding explains, by what the engine does to activations.
FIRST = {"float": 0.002, "int8": 0.1, "dynamic": 0.2}


class LayerOps(TracingOps):
    """The eager backend, keeping the results of norms and of attention only: two per layer locate a difference."""

    def keep_value(self, name: str, x: F32) -> F32:
        last = name.rpartition(".")[2]
        return (
            super().keep_value(name, x)
            if last.startswith(("norm", "patch_norm", "pre_norm", "post_norm", "attention"))
            else x
        )


class ResidualOps(EagerOps):
    """The eager backend, keeping what enters each norm: sums that no scale folded between two layers changes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.values: dict[str, F32] = {}

    def norm(self, x: F32, name: str, spec: Norm) -> F32:
        self.values[name] = x
        return super().norm(x, name, spec)


def trace_reference(
    reference: Reference, view: U8, embeds: F32, layout: Layout, backend: type[LayerOps] | type[ResidualOps] = LayerOps
) -> dict[str, F32]:
    """Named results of one view (H, W, 3) and of one prompt (S, D) that stands alone."""
    spec, feeds = reference.spec, reference.spec.vision.feeds(normalize(view, reference.image))
    ops = backend(reference.weights, inputs=feeds)
    image_features(ops, spec, feeds)
    found = ops.values
    ops = backend(reference.prompt_weights, States(), decoder_inputs(spec.decoder, layout, 0, len(embeds)))
    decoder(ops, embeds, spec.decoder)
    return found | ops.values


def first_layer(
    bundle: Bundle, reference: Reference, case: Case, numerics: dict[str, str]
) -> tuple[Row, dict[str, float]]:
    """The first layer of the ONNX graphs whose result is not the reference's, and the divergence of all.

    numerics: of "vision", whose graph holds the projector, and of "decoder", what the engine does to activations.
    """
    from edgevlm.runtimes.ort.trace import trace_onnx

    embeds = reference.prompt(case.ids, case.layout, case.views)
    theirs = trace_reference(reference, case.views[0], embeds, case.layout)
    try:
        ours = trace_onnx(bundle, normalize(case.views[0], bundle.image_spec), embeds, case.layout)
    except ModuleNotFoundError:
        note = f"not looked for: {install_hint('export')}"
        return Row("onnx", "first layer that differs", 0, None, True, note), {}
    found = {name: divergence(theirs[name], ours[name]) for name in theirs if name in ours}
    limits = {name: FIRST[numerics["decoder" if name.startswith("decoder.") else "vision"]] for name in found}
    place = next((name for name, value in found.items() if value > limits[name]), "")
    note = place or "none of them on this prompt"
    return Row("onnx", "first layer that differs", found.get(place, 0.0), None, True, note, where=place), found


def layer_losses(reference: Reference, original: Reference, case: Case) -> dict[str, float]:
    """Divergence of the quantized model from the original where each norm reads, each on its own inputs."""
    theirs, ours = (
        trace_reference(model, case.views[0], model.prompt(case.ids, case.layout, case.views), case.layout, ResidualOps)
        for model in (original, reference)
    )
    return {name: divergence(theirs[name], ours[name]) for name in theirs}
