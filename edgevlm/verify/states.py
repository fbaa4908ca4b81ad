"""Which state an engine lost between two parts of a prompt: the gate's name for a fault that only later parts show."""

from __future__ import annotations

from edgevlm.inputs.layout import Layout, decoder_inputs
from edgevlm.models.decoder import decoder
from edgevlm.models.eager import EagerOps
from edgevlm.models.spec import states
from edgevlm.models.states import States
from edgevlm.types import F32
from edgevlm.verify.reference import Reference, cosine

EXPLAINS = 0.999  # cosine of logits: a fault that is understood leaves what the engine's own numerics change


def lost_states(reference: Reference, first: F32, second: F32, layout: Layout, found: F32) -> list[str]:
    """The states without which the reference gives an engine's logits (V,) after the second part, where some do.

    first, second: embeddings (S, D) of the parts.
    """
    d = reference.spec.decoder
    replaced = [state.name for state in states(d) if state.kind == "replace"]
    for lost in [replaced, *([name] for name in replaced)] if replaced else []:
        held = States()
        for past, part in ((0, first), (len(first), second)):
            inputs = decoder_inputs(d, layout, past, len(part))
            logits: F32 = decoder(EagerOps(reference.prompt_weights, held, inputs), part, d)
            for name in lost:
                held.replaced.pop(name, None)
        if cosine(found, logits[-1]) >= EXPLAINS:
            return list(lost)
    return []
