"""Qwen3.5 and 3.6, dense: Qwen3-VL's tower without further levels, a decoder of gated delta rule and attention."""

from __future__ import annotations

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import qwen3_5_text, qwen3_vl
from edgevlm.checkpoint.families.decoders import is_tied, text_of
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Names, prefix_of
from edgevlm.checkpoint.families.towers import merger
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec

EMBED, HEAD = "embed_tokens.weight", "lm_head"


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    text = text_of(config)
    tied = is_tied(checkpoint, config, text, f"{HEAD}.weight", f"{prefix_of(checkpoint, EMBED)}{EMBED}")
    tower, decoder = qwen3_vl.read_tower(config.section("vision_config"), levels=[]), qwen3_5_text.read(text, tied=tied)
    return ModelSpec(
        name=checkpoint.name,
        family="qwen3_5",
        vision=tower,
        projector=merger(tower, decoder.hidden_size),
        decoder=decoder,
        image_token_id=config.count("image_token_id", 248056, least=0),
    )


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    return {
        **qwen3_vl.tower_names(checkpoint, spec),
        **qwen3_5_text.tensor_names(prefix_of(checkpoint, EMBED), HEAD, spec.decoder),
    }


def unused(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    return ("mtp.",)  # layers that guess further tokens


TYPES, TOWERS, DECODERS = ("qwen3_5",), ("qwen3_5", "qwen3_5_vision"), ("qwen3_5_text",)
FAMILY = Family(
    TYPES, "Qwen3.5", read, tensor_names, qwen3_vl.image, qwen3_vl.prompt, unused, towers=TOWERS, decoders=DECODERS
)
