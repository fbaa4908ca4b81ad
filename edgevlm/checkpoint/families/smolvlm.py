"""SmolVLM, SmolVLM2 and Idefics3, at any size: SigLIP tower, pixel shuffle, Llama decoder."""

from __future__ import annotations

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.config import Section
from edgevlm.checkpoint.families.decoders import is_tied, read_decoder
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Names, Rows
from edgevlm.checkpoint.families.towers import bucketed_positions, read_vit
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Linear, Queries, Shuffle, Step
from edgevlm.models.towers.vit import Vit

HEAD = "lm_head"


def read(checkpoint: Checkpoint, config: Section) -> ModelSpec:
    text, prefix = config.section("text_config"), _prefix(checkpoint)
    tied = is_tied(checkpoint, config, text, f"{HEAD}.weight", f"{prefix}text_model.embed_tokens.weight")
    vision = read_vit(config.section("vision_config"), image_size=224, patch_size=32, hidden_size=1152)
    decoder = read_decoder(text, tied=tied)
    return ModelSpec(
        name=checkpoint.name,
        family=str(checkpoint.config["model_type"]),
        vision=vision,
        projector=_projector(config, vision.hidden_size, decoder.hidden_size),
        decoder=decoder,
        image_token_id=config.count("image_token_id", 128257, least=0),
    )


def _projector(config: Section, width: int, hidden: int) -> tuple[Step, ...]:
    connector = config.section("query_connector")
    if connector.given:  # edgevlm.train's own
        kind = connector.choice("kind", "", {"qformer": "qformer", "resampler": "resampler"})
        return (Queries(kind, connector.count("queries")),)
    scale = config.count("scale_factor", 2)
    return (Shuffle(scale, width), Linear("linear", hidden, bias=False))


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    assert isinstance(spec.vision, Vit)
    prefix, side = _prefix(checkpoint), spec.vision.patches_per_side
    table = f"{prefix}vision_model.embeddings.position_embedding.weight"
    return {
        **names.siglip(f"{prefix}vision_model."),
        "vision.position_embedding": Rows(table, lambda: bucketed_positions(side)),
        "projector.linear": f"{prefix}connector.modality_projection.proj",
        **names.llama(f"{prefix}text_model.", HEAD),
    }


def _prefix(checkpoint: Checkpoint) -> str:
    return "" if any(name.startswith("text_model.") for name in checkpoint.names()) else "model."


def unused(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    return (f"{_prefix(checkpoint)}connector.",) if any(isinstance(step, Queries) for step in spec.projector) else ()


FAMILY = Family(("smolvlm", "idefics3", "edgevlm_query"), "SmolVLM, SmolVLM2 and Idefics3", read, tensor_names, unused)
