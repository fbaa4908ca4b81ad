"""PaddleOCR-VL: a table of 5 x 5 positions with centers in proportion, wide heads, chunked M-RoPE without biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tokenizers import processors
from transformers import (
    GenerationConfig,
    PaddleOCRVLConfig,
    PaddleOCRVLForConditionalGeneration,
    PaddleOCRVLProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import PaddleOCRVLImageProcessorPil

from tiny import tokenizer as tokenizers
from tiny.common import padded, randomize, renamed, write_json, write_processor, write_tensors, write_tokenizer

Layout = Literal["hub", "saved", "memory"]
ADDED = ("<|IMAGE_START|>", "<|IMAGE_PLACEHOLDER|>", "<|IMAGE_END|>", "<|begin_of_sentence|>", "<|video_pad|>")
LEAST, MOST = 4 * 16 * 16, 40 * 16 * 16  # 4 to 40 image tokens
CHAT_TEMPLATE = """{%- if not add_generation_prompt is defined -%}
    {%- set add_generation_prompt = true -%}
{%- endif -%}
{%- if not cls_token is defined -%}
    {%- set cls_token = "<|begin_of_sentence|>" -%}
{%- endif -%}
{%- if not eos_token is defined -%}
    {%- set eos_token = "</s>" -%}
{%- endif -%}
{{- cls_token -}}
{%- for message in messages -%}
    {%- if message["role"] == "user" -%}
        {{- "User: " -}}
        {%- for content in message["content"] -%}
            {%- if content["type"] == "image" -%}
                {{ "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>" }}
            {%- endif -%}
        {%- endfor -%}
        {%- for content in message["content"] -%}
            {%- if content["type"] == "text" -%}
                {{ content["text"] }}
            {%- endif -%}
        {%- endfor -%}
        {{ "\\n" -}}
    {%- elif message["role"] == "assistant" -%}
        {{- "Assistant:\\n" -}}
        {%- for content in message["content"] -%}
            {%- if content["type"] == "text" -%}
                {{ content["text"] }}
            {%- endif -%}
        {%- endfor -%}
        {{ eos_token -}}
    {%- elif message["role"] == "system" -%}
        {%- for content in message["content"] -%}
            {%- if content["type"] == "text" -%}
                {{ content["text"] + "\\n" }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "Assistant:\\n" -}}
{%- endif -%}
"""


def build(folder: Path, *, seed: int = 0, layout: Layout = "hub") -> Any:
    """Write a tiny PaddleOCR-VL into `folder`; returns its model in float32.

    layout: "hub": `visual.*`, `mlp_AR.*`, `model.*` with the flat config of 2025; "saved": what transformers 5 saves;
    "memory": `model.visual.*`, `model.projector.*`, `model.language_model.*` with transformers 5's config.
    """
    tokenizer = tokenizers.llama(ADDED, form="metaspace")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    ids = tokenizers.added_ids(tokenizer)
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6]}
    text = {
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "use_bias": False,
        "vocab_size": padded(tokenizer.get_vocab_size()),
        "bos_token_id": ids["<s>"],
        "eos_token_id": ids["</s>"],
        "pad_token_id": ids["<unk>"],
    }
    vision = {
        "hidden_size": 64,
        "image_size": 44,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "patch_size": 8,
        "spatial_merge_size": 2,
    }
    places = {
        "vision_start_token_id": ids["<|IMAGE_START|>"],
        "vision_end_token_id": ids["<|IMAGE_END|>"],
        "image_token_id": ids["<|IMAGE_PLACEHOLDER|>"],
        "video_token_id": ids["<|video_pad|>"],
    }
    config = PaddleOCRVLConfig(
        text_config=text | {"rope_parameters": rope | {"rope_theta": 5e5}, "tie_word_embeddings": False},
        vision_config=dict(vision),
        tie_word_embeddings=False,
        **places,
    )
    model = PaddleOCRVLForConditionalGeneration(config).eval()
    randomize(model, seed, list(ids.values()))
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<s>"], pad_token_id=ids["<unk>"], eos_token_id=ids["</s>"]
    )
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "saved":
        model.save_pretrained(folder)
    else:
        names = renamed(
            (r"model\.visual\.", "visual."), (r"model\.projector\.", "mlp_AR."),
            (r"model\.language_model\.", "model."),
        )  # fmt: skip
        write_tensors(folder, model, names if layout == "hub" else lambda name: name)
        config.architectures = ["PaddleOCRVLForConditionalGeneration"]
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    if layout == "hub":
        published = {"architectures": config.architectures, "model_type": "paddleocr_vl", "torch_dtype": "float32"}
        flat = {"rope_theta": 500000, "rope_scaling": rope | {"type": "default"}, "tie_word_embeddings": False}
        more = {"model_type": "paddleocr_vl", "num_channels": 3, "temporal_patch_size": 2, "layer_norm_eps": 1e-06}
        write_json(folder / "config.json", published | text | places | flat | {"vision_config": vision | more})
    _write_processor(folder, tokenizer, layout)
    return model


def load_processor(folder: Path) -> Any:
    """transformers' processor with the Pillow image processor."""
    named = {"image_token": "<|IMAGE_PLACEHOLDER|>"}
    return PaddleOCRVLProcessor(
        image_processor=PaddleOCRVLImageProcessorPil.from_pretrained(folder),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=named),
        chat_template=CHAT_TEMPLATE,
    )


def _write_processor(folder: Path, tokenizer: Any, layout: Layout) -> None:
    write_tokenizer(
        folder,
        tokenizer,
        kind="LlamaTokenizerFast",
        published=layout == "hub",
        template=CHAT_TEMPLATE,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        cls_token="<|begin_of_sentence|>",
    )
    settings: dict[str, Any] = {"patch_size": 8, "temporal_patch_size": 1, "merge_size": 2}
    settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    if layout == "hub":
        settings |= {"min_pixels": LEAST, "max_pixels": MOST, "image_processor_type": "PaddleOCRVLImageProcessor"}
        write_json(folder / "preprocessor_config.json", settings | {"processor_class": "PaddleOCRVLProcessor"})
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    else:
        images = PaddleOCRVLImageProcessorPil(size={"shortest_edge": LEAST, "longest_edge": MOST}, **settings)
        write_processor(folder, "PaddleOCRVLProcessor", images, CHAT_TEMPLATE)
