"""Gemma 3: SigLIP, patches averaged 4 x 4, sandwich norms, windows smaller than a picture, two RoPE bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from tiny import tokenizer as tokenizers
from tiny.common import (
    padded,
    randomize,
    renamed,
    write_json,
    write_processor,
    write_tensors,
    write_tokenizer,
)

Layout = Literal["hub", "saved", "memory"]
SIZE, PATCH, TOKENS = 48, 4, 9  # pixels of the square, of a patch, image tokens
SPECIALS = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>")
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
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
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
    "do_pan_and_scan": None,
}  # fmt: skip


class Processor(Gemma3Processor):
    """As `apply_chat_template(tokenize=True)` calls it: the template has written the bos token already."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return super().__call__(*arguments, add_special_tokens=False, **options)


def build(folder: Path, *, seed: int = 0, layout: Layout = "hub", scalar: int = 32, dtype: str = "float32") -> Any:
    """Write a tiny Gemma 3 into `folder`; returns its model in float32.

    layout: "hub": `vision_tower.vision_model.*`, `multi_modal_projector.*`, `language_model.model.*`, as transformers 4
    wrote; "saved": what transformers 5 saves, without `vision_model`; "memory": `model.*`. scalar:
    query_pre_attn_scalar, here the head size. dtype: of the files, "bfloat16" as published.
    """
    tokenizer = tokenizers.gemma(SPECIALS)
    ids = tokenizers.added_ids(tokenizer)
    text: dict[str, Any] = {
        "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": padded(tokenizer.get_vocab_size()),
        "max_position_embeddings": 512, "query_pre_attn_scalar": scalar, "sliding_window": 8,
        "model_type": "gemma3_text",
    }  # fmt: skip
    vision = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": SIZE, "patch_size": PATCH, "vision_use_head": False, "model_type": "siglip_vision_model",
    }  # fmt: skip
    places = {
        "boi_token_index": ids["<start_of_image>"],
        "eoi_token_index": ids["<end_of_image>"],
        "image_token_index": ids["<image_soft_token>"],
        "mm_tokens_per_image": TOKENS,
    }
    # 6 in the class, of which each tiny model would have no full layer; files of transformers 4 keep these keys.
    old = {"sliding_window_pattern": 3, "rope_theta": 1e5, "rope_local_base_freq": 1e3}
    scaling = {"factor": 4.0, "rope_type": "linear"}
    config = Gemma3Config(text_config=text | old | {"rope_scaling": dict(scaling)}, vision_config=vision, **places)
    torch.manual_seed(seed)
    model = Gemma3ForConditionalGeneration(config).eval()
    randomize(model, seed, list(ids.values()))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and "vision_tower" not in name:
                parameter -= 1  # stored as their difference from one
    model.to(getattr(torch, dtype)).float()
    ends = {"bos_token_id": ids["<bos>"], "eos_token_id": [ids["<eos>"], ids["<end_of_turn>"]], "pad_token_id": 0}
    model.generation_config = GenerationConfig(**ends)
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "saved":
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        model.float()
    else:
        hub = renamed(
            (r"model\.vision_tower\.", "vision_tower.vision_model."),
            (r"lm_head\.", "language_model.lm_head."),
            (r"model\.language_model\.", "language_model.model."),
            (r"model\.", ""),
        )
        model.to(getattr(torch, dtype))
        write_tensors(folder, model, hub if layout == "hub" else lambda name: name)
        model.float()
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    if layout == "hub":
        published = {
            "architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": ends["eos_token_id"],
            "initializer_range": 0.02, "model_type": "gemma3", "torch_dtype": dtype, "vision_config": vision,
            "text_config": text | old | {"rope_scaling": scaling},
        }  # fmt: skip
        write_json(folder / "config.json", published | places)
    _write_processor(folder, tokenizer, layout)
    return model


def load_processor(folder: Path) -> Any:
    """transformers' processor with the Pillow image processor."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=_EXTRA)
    return Processor(
        Gemma3ImageProcessorPil(**_IMAGES), tokenizer, chat_template=CHAT_TEMPLATE, image_seq_length=TOKENS
    )


_EXTRA = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}


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
        **(
            {"add_bos_token": True, "add_eos_token": False, "extra_special_tokens": _EXTRA, **_EXTRA}
            if published
            else {}
        ),
    )
    if published:
        usual = {
            "do_convert_rgb": None, "do_normalize": True, "do_rescale": True, "do_resize": True,
            "image_processor_type": "Gemma3ImageProcessor", "image_seq_length": TOKENS,
            "pan_and_scan_max_num_crops": None, "processor_class": "Gemma3Processor", "rescale_factor": 1 / 255,
        }  # fmt: skip
        write_json(folder / "preprocessor_config.json", _IMAGES | usual)
        write_json(folder / "processor_config.json", {"image_seq_length": TOKENS, "processor_class": "Gemma3Processor"})
        write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    else:
        images = Gemma3ImageProcessorPil(**_IMAGES)
        write_processor(folder, "Gemma3Processor", images, CHAT_TEMPLATE, image_seq_length=TOKENS)
