"""LLaVA 1.5's layout (arXiv 2310.03744) with a SigLIP tower, a projector of two linear maps, and a Llama decoder."""

from __future__ import annotations

from dataclasses import replace

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families.config import Section
from edgevlm.checkpoint.families.parts import (
    ACTIVATIONS,
    MappedWeights,
    Sources,
    check_spec,
    is_tied,
    read_decoder,
    read_vision,
)
from edgevlm.errors import EdgeVLMError
from edgevlm.models.spec import ModelSpec, ProjectorSpec, VisionSpec


def read(checkpoint: Checkpoint) -> tuple[ModelSpec, MappedWeights]:
    """The spec and the weights of a LLaVA checkpoint; transformers has had several ways to name its tensors."""
    config = Section(checkpoint.config, "config.json")
    text = config.section("text_config")
    tower, language, linear = (
        _prefix(checkpoint, mark)
        for mark in ("embeddings.patch_embedding.weight", "embed_tokens.weight", "linear_1.weight")
    )
    head = next((name for name in checkpoint.names() if name.endswith("lm_head.weight")), "lm_head.weight")
    config.choice("vision_feature_select_strategy", "default", {"full": "full"})
    activation = config.choice("projector_hidden_act", "gelu", ACTIVATIONS)
    whole = _vision(config.section("vision_config"))
    spec = ModelSpec(
        name=checkpoint.name,
        family="llava",
        vision=_used_layers(whole, config.value("vision_feature_layer")),
        projector=ProjectorSpec("mlp", activation=activation),
        decoder=read_decoder(text, tied=is_tied(checkpoint, config, text, head, f"{language}embed_tokens.weight")),
        image_token_id=_image_token_id(config),
    )
    check_spec(spec)
    sources = Sources()
    sources.vision(spec.vision, tower, None)
    sources.decoder(spec.decoder, language, head, text)
    bias = config.value("multimodal_projector_bias") is None or config.flag("multimodal_projector_bias")
    hidden = spec.decoder.hidden_size
    sources.linear("projector.linear_1", f"{linear}linear_1", hidden, whole.hidden_size, bias=bias)
    sources.linear("projector.linear_2", f"{linear}linear_2", hidden, hidden, bias=bias)
    last = tuple(f"{tower}encoder.layers.{i}." for i in range(spec.vision.num_layers, whole.num_layers))
    aside = (f"{tower}post_layernorm.", f"{tower}head.", *last)
    tied = spec.decoder.tie_embeddings
    return spec, sources.weights(checkpoint, lambda name: name.startswith(aside) or (tied and name == head))


def _prefix(checkpoint: Checkpoint, mark: str) -> str:
    """What stands before `mark` in the one tensor name that ends with it."""
    found = [name.removesuffix(mark) for name in checkpoint.names() if name.endswith(mark)]
    if len(found) != 1:
        raise EdgeVLMError(f"{checkpoint.folder} lacks the tensor '{mark}' of a LLaVA model: download it again.")
    return found[0]


def _vision(config: Section) -> VisionSpec:
    config.choice("model_type", "clip_vision_model", {"siglip_vision_model": "siglip"})
    # The defaults of transformers' SiglipVisionConfig, which are not SmolVLM's.
    defaults = {"image_size": 224, "patch_size": 16, "hidden_size": 768}
    return replace(read_vision(config, defaults), post_norm=False)


def _used_layers(vision: VisionSpec, layer: object) -> VisionSpec:
    """hidden_states[layer] of the tower: -1 is after its last layer, -2 after the one before, as in LLaVA."""
    kept = vision.num_layers + 1 + layer if type(layer) is int and layer < 0 else layer
    if type(layer) is int and type(kept) is int and 1 <= kept <= vision.num_layers:
        return replace(vision, num_layers=kept)
    if layer is None:  # LlavaConfig's default
        return _used_layers(vision, -2)
    raise EdgeVLMError(
        f"config.json: vision_feature_layer is {str(layer)[:80]}: edgevlm supports one layer of the encoder; use a "
        "checkpoint with one."
    )


def _image_token_id(config: Section) -> int:
    key = "image_token_index" if config.value("image_token_id") is None else "image_token_id"
    return config.count(key, 32000, least=0)
