"""edgevlm.train's own layout: SmolVLM's with a Q-Former or a resampler as projector. It is trained, not exported."""

from __future__ import annotations

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families.config import Section
from edgevlm.checkpoint.families.parts import MappedWeights
from edgevlm.checkpoint.families.smolvlm import read_towers
from edgevlm.models.spec import ModelSpec, ProjectorSpec


def read(checkpoint: Checkpoint) -> tuple[ModelSpec, MappedWeights]:
    """The spec, and the weights of all but the projector."""
    config = Section(checkpoint.config, "config.json")
    connector = config.section("query_connector")
    kind = connector.choice("kind", "", {"qformer": "qformer", "resampler": "resampler"})
    spec, sources, prefix = read_towers(checkpoint, config, ProjectorSpec(kind, queries=connector.count("queries")))
    aside = (f"{prefix}connector.", *(("lm_head.",) if spec.decoder.tie_embeddings else ()))
    return spec, sources.weights(checkpoint, lambda name: name.startswith(aside))
