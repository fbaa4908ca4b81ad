"""Gemma 3n: streams of states, maps beside mixers, gates of which few count, per-layer embeddings, shared keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from safetensors.torch import load_file
from transformers import (
    Gemma3nAudioFeatureExtractor,
    Gemma3nConfig,
    Gemma3nForConditionalGeneration,
    Gemma3nProcessor,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.gemma3n import modeling_gemma3n
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tiny import mobilenetv5
from tiny import tokenizer as tokenizers
from tiny.common import (
    padded,
    randomize,
    write_json,
    write_processor,
    write_safetensors,
    write_tensors,
    write_tokenizer,
)

Layout = Literal["hub", "saved", "memory"]
SIZE, TOKENS, NARROW = 256, 256, {"channel_multiplier": 1 / 64}
TEXT = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<start_of_audio>")
VISUAL, AUDIBLE = ("<end_of_image>", "<image_soft_token>"), ("<end_of_audio>", "<audio_soft_token>")
CHAT_TEMPLATE = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'audio' -%}
                {{ '<audio_soft_token>' }}
            {%- elif item['type'] == 'image' -%}
                {{ '<image_soft_token>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""
_IMAGES: dict[str, Any] = {
    "size": {"height": SIZE, "width": SIZE}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    "do_normalize": False,
}  # fmt: skip
_EXTRA = {
    "image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
    "audio_token": "<audio_soft_token>", "boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>",
}  # fmt: skip
KINDS = ["sliding_attention", "sliding_attention", "full_attention"] * 2
SOUND: dict[str, Any] = {
    "hidden_size": 64, "conf_hidden_size": 64, "conf_num_attention_heads": 2, "conf_num_hidden_layers": 1,
    "conf_attention_chunk_size": 4, "conf_attention_context_left": 5, "input_feat_size": 32,
    "sscp_conv_channel_size": [8, 4], "vocab_size": 8, "model_type": "gemma3n_audio",
}  # fmt: skip


class Processor(Gemma3nProcessor):
    """As `apply_chat_template(tokenize=True)` calls it: the template has written the bos token already."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return super().__call__(*arguments, add_special_tokens=False, **options)


def build(
    folder: Path, *, seed: int = 0, layout: Layout = "hub", dtype: str = "float32", unread: bool = True, **options: Any
) -> Any:
    """Write a tiny Gemma 3n into `folder`; returns its model in float32.

    layout: "hub": a config as transformers 4 wrote it; "saved": what transformers 5 saves; "memory": its config with
    the names of `state_dict`. dtype: of the files, "bfloat16" as published. unread: hub's files also hold keys and
    values that nothing reads. options: of text_config.
    """
    tokenizer = tokenizers.gemma((*TEXT, *VISUAL, *AUDIBLE))
    ids = tokenizers.added_ids(tokenizer)
    visual, audible = ids[VISUAL[0]], ids[AUDIBLE[0]]
    text: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": padded(tokenizer.get_vocab_size()),
        "vocab_size_per_layer_input": visual, "hidden_size_per_layer_input": 32, "max_position_embeddings": 2048,
        "sliding_window": 8, "layer_types": KINDS, "num_kv_shared_layers": 3, "laurel_rank": 32,
        "activation_sparsity_pattern": [0.95, 0.95, 0.5, 0.0, 0.0, 0.0], "final_logit_softcapping": 12.0,
        "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "model_type": "gemma3n_text", **options,
    }  # fmt: skip
    vision = {
        "architecture": "mobilenetv5_300m_enc", "model_args": NARROW, "hidden_size": mobilenetv5.FEATURES,
        "vocab_offset": visual, "vocab_size": len(VISUAL), "model_type": "gemma3n_vision",
    }  # fmt: skip
    sound = SOUND | {"vocab_offset": audible}
    places = {
        "image_token_id": ids["<image_soft_token>"], "boi_token_id": ids["<start_of_image>"],
        "eoi_token_id": ids["<end_of_image>"], "audio_token_id": ids["<audio_soft_token>"],
        "boa_token_id": ids["<start_of_audio>"], "eoa_token_id": ids["<end_of_audio>"],
        "vision_soft_tokens_per_image": TOKENS,
    }  # fmt: skip
    config = Gemma3nConfig(
        text_config=dict(text), vision_config={**vision, "label_names": []}, audio_config=dict(sound), **places
    )
    real = modeling_gemma3n.AutoModel.from_config

    def made(part: Any, **options: Any) -> Any:
        return mobilenetv5.Wrapper(**NARROW) if part.model_type == "gemma3n_vision" else real(part, **options)

    torch.manual_seed(seed)
    with mock.patch.object(modeling_gemma3n.AutoModel, "from_config", made):
        model = Gemma3nForConditionalGeneration(config).eval()
    randomize(model, seed, list(ids.values()))
    mobilenetv5.randomize_tower(model.model.vision_tower, seed)
    _settle(model, seed)
    model.to(getattr(torch, dtype)).float()
    ends = {"bos_token_id": ids["<bos>"], "eos_token_id": [ids["<eos>"], ids["<end_of_turn>"]], "pad_token_id": 0}
    model.generation_config = GenerationConfig(**ends)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype))
    if layout == "saved":
        model.save_pretrained(folder)
    else:
        write_tensors(folder, model)
        config.architectures = ["Gemma3nForConditionalGeneration"]
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    if layout == "hub":
        layer = f"model.language_model.layers.{len(text['layer_types']) - 1}.self_attn"
        more = {f"{layer}.{part}_proj.weight": torch.ones(64, text["hidden_size"]) for part in "kv"}
        more |= {f"{layer}.k_norm.weight": torch.ones(32)}
        write_safetensors(folder, load_file(folder / "model.safetensors") | (more if unread else {}))
        old = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None, "altup_num_inputs": 4}
        kind = {"architectures": config.architectures, "model_type": "gemma3n", "torch_dtype": dtype}
        parts = {"text_config": text | old, "vision_config": vision, "audio_config": sound}
        write_json(folder / "config.json", kind | places | parts | {"eos_token_id": ends["eos_token_id"]})
    model.float()
    _write_processor(folder, tokenizer, layout)
    return model


@torch.no_grad()
def _settle(model: Any, seed: int) -> None:
    """What `randomize` cannot know: scores that are not scaled, vectors without a norm's name, streams that differ.

    Each of many layers adds less, or the smallest difference between two engines would grow to another text.
    """
    random, share = torch.Generator().manual_seed(seed + 1), 6 / len(model.model.language_model.layers)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=random)
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            parameter.copy_(0.45 + 0.08 * noise)
        elif name.endswith("correct_output_scale"):
            parameter.copy_(1 + 0.3 * noise)
        elif name.endswith("modality_router.weight"):
            parameter.copy_(noise * parameter.shape[1] ** 0.5)
        elif name.endswith("prediction_coefs.weight"):
            parameter.copy_(0.15 * share**0.5 * noise)
        elif name.endswith("correction_coefs.weight"):
            parameter.copy_(0.3 * share**0.5 * noise)
        elif "language_model" in name and "post_" in name:
            parameter.mul_(2 * share)  # or a tied decoder would repeat what it reads


def load_processor(folder: Path) -> Any:
    """transformers' processor with the Pillow image processor; sounds are left out of what it makes."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=_EXTRA)
    return Processor(
        Gemma3nAudioFeatureExtractor(), SiglipImageProcessorPil(**_IMAGES), tokenizer, chat_template=CHAT_TEMPLATE,
        image_seq_length=TOKENS,
    )  # fmt: skip


def _write_processor(folder: Path, tokenizer: Any, layout: Layout) -> None:
    published = layout == "hub"
    write_tokenizer(
        folder,
        tokenizer,
        kind="GemmaTokenizer",
        published=published,
        template=None,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        **({"add_bos_token": True, "extra_special_tokens": _EXTRA, **_EXTRA} if published else {}),
    )
    if published:
        usual = {
            "do_convert_rgb": None, "do_rescale": True, "do_resize": True, "rescale_factor": 1 / 255,
            "image_processor_type": "SiglipImageProcessorFast", "image_seq_length": TOKENS,
            "processor_class": "Gemma3nProcessor", "feature_extractor_type": "Gemma3nAudioFeatureExtractor",
        }  # fmt: skip
        write_json(folder / "preprocessor_config.json", _IMAGES | usual)
        lengths = {"image_seq_length": TOKENS, "audio_seq_length": 188}
        write_json(folder / "processor_config.json", lengths | {"processor_class": "Gemma3nProcessor"})
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    else:
        images = SiglipImageProcessorPil(**_IMAGES)
        lengths = {"image_seq_length": TOKENS, "audio_seq_length": 188}
        write_processor(folder, "Gemma3nProcessor", images, CHAT_TEMPLATE, **lengths)
