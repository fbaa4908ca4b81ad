"""SmolVLM, SmolVLM2 and Idefics3, at any size: SigLIP tower, pixel shuffle, Llama decoder."""

from __future__ import annotations

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families.config import Section
from edgevlm.checkpoint.families.parts import (
    MappedWeights,
    Sources,
    check_spec,
    is_tied,
    patch_positions,
    read_decoder,
    read_vision,
)
from edgevlm.models.spec import ModelSpec, ProjectorSpec

_HEAD = "lm_head.weight"


def read(checkpoint: Checkpoint) -> tuple[ModelSpec, MappedWeights]:
    """The spec and the weights of a SmolVLM, SmolVLM2 or Idefics3 checkpoint."""
    config = Section(checkpoint.config, "config.json")
    projector = ProjectorSpec("pixel_shuffle", config.count("scale_factor", 2))
    spec, sources, prefix = read_towers(checkpoint, config, projector)
    hidden, shuffled = spec.decoder.hidden_size, spec.vision.hidden_size * projector.scale_factor**2
    source = f"{prefix}connector.modality_projection.proj"
    sources.linear("projector.linear", source, hidden, shuffled, bias=False)
    return spec, sources.weights(checkpoint, lambda name: spec.decoder.tie_embeddings and name == _HEAD)


def read_towers(checkpoint: Checkpoint, config: Section, projector: ProjectorSpec) -> tuple[ModelSpec, Sources, str]:
    """All but the projector: the spec, where the tensors stand, and what their names start with."""
    text = config.section("text_config")
    prefix = "" if any(name.startswith("text_model.") for name in checkpoint.names()) else "model."
    tied = is_tied(checkpoint, config, text, _HEAD, f"{prefix}text_model.embed_tokens.weight")
    spec = ModelSpec(
        name=checkpoint.name,
        family=str(checkpoint.config["model_type"]),
        vision=read_vision(config.section("vision_config")),
        projector=projector,
        decoder=read_decoder(text, tied=tied),
        image_token_id=config.count("image_token_id", 128257, least=0),
    )
    check_spec(spec)
    sources = Sources()
    sources.vision(spec.vision, f"{prefix}vision_model.", patch_positions(spec.vision.patches_per_side))
    sources.decoder(spec.decoder, f"{prefix}text_model.", _HEAD, text)
    return spec, sources, prefix


__all__ = ["MappedWeights", "patch_positions", "read", "read_towers"]
