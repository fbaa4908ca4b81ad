"""Qwen2.5-VL: windows of 2x2 merged tokens in all layers but the second, chunked M-RoPE of unequal sections."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tiny import tokenizer as tokenizers
from tiny.common import (
    CLIP_MEAN,
    CLIP_STD,
    padded,
    randomize,
    renamed,
    without_videos,
    write_json,
    write_processor,
    write_tensors,
    write_tokenizer,
)

Layout = Literal["hub", "saved", "memory"]
SETTINGS = {
    "patch_size": 8,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "least": 4 * 16 * 16,  # 4 to 40 image tokens
    "most": 40 * 16 * 16,
}
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "<|im_end|>\n{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in "
    "content or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}"
    "Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] "
    "== 'video' or 'video' in content %}{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video "
    "{{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}"
    "{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}"
)


def build(folder: Path, *, seed: int = 0, layout: Layout = "hub", tie: bool = False, window: int = 32) -> Any:
    """Write a tiny Qwen2.5-VL into `folder`; returns its model in float32.

    layout: "hub": `visual.*`, `model.*`, `lm_head.*` with the flat config of 2025; "saved": what transformers 5 saves;
    "memory": `model.visual.*`, `model.language_model.*` with transformers 5's config.
    tie: the 3B model has no lm_head, the 7B has one. window: pixels; those of llama.cpp are 112, as the models' are.
    """
    tokenizer = tokenizers.qwen()
    ids = tokenizers.added_ids(tokenizer)
    text = {
        "hidden_size": 128,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "max_window_layers": 2,
        "rms_norm_eps": 1e-6,
        "use_sliding_window": False,
        "sliding_window": 32,
        "vocab_size": padded(tokenizer.get_vocab_size()),
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    vision = {
        "depth": 3,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 2,
        "out_hidden_size": 128,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": window,
        "fullatt_block_indexes": [1],
    }
    places = {
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
    }
    rope = {"mrope_section": [4, 6, 6]}
    parameters = {"rope_type": "default", "rope_theta": 1e6, **rope}
    config = Qwen2_5_VLConfig(
        text_config=text | {"rope_parameters": parameters, "tie_word_embeddings": tie},
        vision_config=dict(vision),
        tie_word_embeddings=tie,
        **places,
    )
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    randomize(model, seed, list(ids.values()))
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
    )
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "saved":
        model.save_pretrained(folder)
    else:
        names = renamed((r"model\.visual\.", "visual."), (r"model\.language_model\.", "model."))
        write_tensors(folder, model, names if layout == "hub" else lambda name: name)
        config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    if layout == "hub":
        published = {"architectures": config.architectures, "model_type": "qwen2_5_vl", "torch_dtype": "float32"}
        flat = {"attention_dropout": 0.0, "rope_theta": 1000000.0, "rope_scaling": {"type": "mrope", **rope}}
        more = {"in_chans": 3, "spatial_patch_size": vision["patch_size"]}
        tied = {"tie_word_embeddings": tie, "vision_token_id": ids["<|vision_pad|>"]}
        write_json(folder / "config.json", published | text | places | flat | tied | {"vision_config": vision | more})
    write_processor_files(folder, tokenizer, layout, "Qwen2_5_VLProcessor", SETTINGS)
    return model


def load_processor(folder: Path, kind: Any = Qwen2_5_VLProcessor, template: str = CHAT_TEMPLATE) -> Any:
    """transformers' processor with the Pillow image processor, and no videos."""
    return without_videos(
        kind,
        image_processor=Qwen2VLImageProcessorPil.from_pretrained(folder),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder),
        chat_template=template,
    )


def write_processor_files(
    folder: Path, tokenizer: Any, layout: Layout, name: str, settings: dict[str, Any], template: str = CHAT_TEMPLATE
) -> None:
    """Tokenizer and processor. settings: the image processor's, with "least" and "most" for its two areas."""
    write_tokenizer(
        folder,
        tokenizer,
        kind="Qwen2Tokenizer",
        published=layout == "hub",
        template=template,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(tokenizers.QWEN_SPECIALS[1:]),
    )
    areas = {key: settings[key] for key in ("least", "most")}
    settings = {key: value for key, value in settings.items() if key not in areas}
    if layout == "hub":
        settings |= {"min_pixels": areas["least"], "max_pixels": areas["most"]}
        kind = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": name}
        write_json(folder / "preprocessor_config.json", settings | kind)
        write_json(folder / "chat_template.json", {"chat_template": template})
    else:
        size = {"shortest_edge": areas["least"], "longest_edge": areas["most"]}
        write_processor(folder, name, Qwen2VLImageProcessorPil(size=size, **settings), template)
