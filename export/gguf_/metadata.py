"""Keys and values of the two files (llama.cpp: gguf-py/gguf/constants.py, tools/mtmd/clip.cpp)."""

from __future__ import annotations

import json

from gguf import GGUFWriter, LlamaFileType

from edgevlm.export.gguf_.tokenizer import Vocabulary, chat_template
from edgevlm.export.quantize.recipe import Recipe
from edgevlm.inputs.rules import TilesThenWhole
from edgevlm.inputs.spec import ImageSpec, PromptSpec
from edgevlm.io.records import to_dict
from edgevlm.models.model import ModelSpec

SCHEMA = 1
_FILE_TYPES = {
    "fp32": LlamaFileType.ALL_F32,
    "fp16": LlamaFileType.MOSTLY_F16,
    "int8": LlamaFileType.MOSTLY_Q8_0,
    "int4": LlamaFileType.MOSTLY_Q4_0,
}


def add_decoder(writer: GGUFWriter, spec: ModelSpec, recipe: Recipe) -> None:
    s = spec.decoder
    writer.add_type("model")
    writer.add_name(spec.name)
    writer.add_file_type(_FILE_TYPES[recipe.decoder.kind])
    writer.add_quantization_version(2)
    writer.add_vocab_size(s.vocab_size)
    writer.add_context_length(s.context_length)
    writer.add_embedding_length(s.hidden_size)
    writer.add_block_count(s.num_layers)
    writer.add_feed_forward_length(s.intermediate_size)
    writer.add_head_count(s.num_heads)
    writer.add_head_count_kv(s.num_kv_heads)
    writer.add_key_length(s.head_dim)
    writer.add_value_length(s.head_dim)
    writer.add_rope_dimension_count(s.head_dim)
    writer.add_rope_freq_base(s.rope_theta)
    writer.add_layer_norm_rms_eps(s.rms_norm_eps)


def add_tokenizer(writer: GGUFWriter, vocabulary: Vocabulary, prompt: PromptSpec) -> None:
    """The template writes the prefix itself, so llama.cpp must not add a bos token."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    if prompt.bos_id is not None:
        writer.add_bos_token_id(prompt.bos_id)
    writer.add_eos_token_id(prompt.stop_ids[0])
    writer.add_eot_token_id(prompt.stop_ids[-1])
    if prompt.pad_id is not None:
        writer.add_pad_token_id(prompt.pad_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(chat_template(prompt))


def add_vision(writer: GGUFWriter, spec: ModelSpec, recipe: Recipe, image: ImageSpec) -> None:
    s = spec.vision
    writer.add_type("mmproj")
    writer.add_name(spec.name)
    writer.add_file_type(_FILE_TYPES[recipe.vision.kind])
    writer.add_quantization_version(2)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("idefics3")
    writer.add_vision_image_size(s.image_size)
    writer.add_vision_patch_size(s.patch_size)
    writer.add_vision_embedding_length(s.hidden_size)
    writer.add_vision_feed_forward_length(s.intermediate_size)
    writer.add_vision_block_count(s.num_layers)
    writer.add_vision_head_count(s.num_heads)
    writer.add_vision_projection_dim(spec.decoder.hidden_size)
    writer.add_vision_attention_layernorm_eps(s.layer_norm_eps)
    unit = image.rescale_factor * 255  # llama.cpp always divides by 255 first
    writer.add_vision_image_mean([value / unit for value in image.mean])
    writer.add_vision_image_std([value / unit for value in image.std])
    writer.add_vision_use_gelu(True)
    writer.add_vision_projector_scale_factor(spec.projector.scale_factor)
    writer.add_uint32("clip.vision.preproc_image_size", preproc_image_size(image))  # gguf 0.17 has no name for it


def preproc_image_size(image: ImageSpec) -> int:
    """The longest edge to which stock llama.cpp scales a picture before it cuts tiles.

    Without the key it cuts one tile per tile size of the raw photo; without splitting, one tile is the nearest it gets.
    """
    rule = image.rule
    assert isinstance(rule, TilesThenWhole)
    return min(rule.longest_edge or rule.max_edge, rule.max_edge) if rule.split else rule.side


def add_own(writer: GGUFWriter, image: ImageSpec, prompt: PromptSpec) -> None:
    """Our specs in both files: GGUF has no keys for filter, padding, tiling or EXIF, and a file may travel alone."""
    writer.add_uint32("edgevlm.schema", SCHEMA)
    writer.add_string("edgevlm.preprocess", json.dumps(to_dict(image), sort_keys=True))
    writer.add_string("edgevlm.prompt", json.dumps(to_dict(prompt), sort_keys=True))
