"""Limits on a model's description that hold for every family."""

from __future__ import annotations

from edgevlm.errors import EdgeVLMError
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Shuffle
from edgevlm.models.spec import Attention
from edgevlm.models.towers.vit import Vit


def check_model(spec: ModelSpec) -> None:
    """Raise EdgeVLMError where the numbers of a config do not fit together."""
    vision, text = spec.vision, spec.decoder
    heads = [mixer for block in (vision.block, *text.blocks) for mixer in block.mixers if isinstance(mixer, Attention)]
    problems = [
        (max(vision.num_layers, text.num_layers) > 1000, "it asks for more than 1000 layers"),
        (vision.hidden_size % heads[0].heads, "the vision hidden_size is no multiple of num_attention_heads"),
        (any(a.heads % a.kv_heads for a in heads), "num_attention_heads is no multiple of num_key_value_heads"),
        (
            any(rope.size % 2 for rope in text.ropes.values()),
            f"head_dim is {heads[-1].head_dim} and RoPE needs an even one",
        ),
        (
            any(rope.sections and sum(rope.sections) != rope.size // 2 for rope in text.ropes.values()),
            "mrope_section does not add up to half of head_dim",
        ),
        (
            spec.image_token_id >= text.vocab_size,
            f"image_token_id {spec.image_token_id} is outside the vocabulary",
        ),
    ]
    if isinstance(vision, Vit):
        scales = [step.scale for step in spec.projector if isinstance(step, Shuffle)]
        problems += [
            (vision.image_size > 8192, "the vision image_size is over 8192"),
            (vision.image_size < vision.patch_size, "the vision image_size is smaller than patch_size"),
            (
                any(vision.patches_per_side % scale for scale in scales),
                f"{vision.patches_per_side} patches per side are no multiple of scale_factor",
            ),
        ]
    for wrong, sentence in problems:
        if wrong:
            raise EdgeVLMError(f"config.json does not describe a model: {sentence}; download it again.")
