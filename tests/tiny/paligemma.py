"""PaliGemma 1 and 2: one key head or soft caps and windows; a prompt without a chat, which sees itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    GenerationConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tiny import tokenizer as tokenizers
from tiny.common import padded, randomize, renamed, write_json, write_tensors, write_tokenizer

Layout = Literal["hub", "saved", "memory"]
SIZE, PATCH, TOKENS = 48, 8, 36  # pixels of the square, of a patch, image tokens
LOCATIONS = tuple(f"<loc{i:04d}>" for i in range(1024)) + tuple(f"<seg{i:03d}>" for i in range(128))
# Published files have none: this one hands the processor what a user would, placeholders first.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ '<image>' }}"
    "{% endif %}{% endfor %}{% for item in message['content'] %}{% if item['type'] == 'text' %}{{ item['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}"
)
_IMAGES: dict[str, Any] = {
    "size": {"height": SIZE, "width": SIZE}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip
_TEXT: dict[str, dict[str, Any]] = {
    "gemma": {"num_key_value_heads": 1},
    "gemma2": {
        "num_key_value_heads": 2, "query_pre_attn_scalar": 24, "sliding_window": 8, "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 9.0,
    },
}  # fmt: skip


class Processor(PaliGemmaProcessor):
    """Without the labels, which are for training."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        made = super().__call__(*arguments, **options)
        del made["labels"]
        return made


def build(folder: Path, *, seed: int = 0, layout: Layout = "hub", text: Literal["gemma", "gemma2"] = "gemma") -> Any:
    """Write a tiny PaliGemma into `folder`; returns its model in float32. layout: as in `tiny.gemma3`."""
    tokenizer = tokenizers.gemma(("<image>",))
    ids = tokenizers.added_ids(tokenizer)
    tokenizer.add_tokens(list(LOCATIONS))
    language: dict[str, Any] = {
        "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 32,
        "vocab_size": padded(tokenizer.get_vocab_size()), "max_position_embeddings": 512, "model_type": text,
        **_TEXT[text],
    }  # fmt: skip
    vision = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": SIZE, "patch_size": PATCH, "vision_use_head": False, "model_type": "siglip_vision_model",
        "projection_dim": 96,
    }  # fmt: skip
    places = {"image_token_index": ids["<image>"], "projection_dim": 96, "hidden_size": 96}
    ends = {"bos_token_id": ids["<bos>"], "eos_token_id": ids["<eos>"], "pad_token_id": 0}
    config = PaliGemmaConfig(text_config=dict(language), vision_config=dict(vision), **places)
    config._attn_implementation = config.text_config._attn_implementation = "eager"  # the one that caps scores
    torch.manual_seed(seed)
    model = PaliGemmaForConditionalGeneration(config).eval()
    randomize(model, seed, list(ids.values()))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and "language_model" in name:
                parameter -= 1  # stored as their difference from one
    model.generation_config = GenerationConfig(**ends)
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "saved":
        model.save_pretrained(folder)
    else:
        hub = renamed(
            (r"model\.vision_tower\.", "vision_tower.vision_model."),
            (r"lm_head\.", "language_model.lm_head."),
            (r"model\.language_model\.", "language_model.model."),
            (r"model\.", ""),
        )
        write_tensors(folder, model, hub if layout == "hub" else lambda name: name)
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    if layout == "hub":
        published = {
            "architectures": ["PaliGemmaForConditionalGeneration"], "ignore_index": -100, "model_type": "paligemma",
            "torch_dtype": "float32", "text_config": language, "vision_config": vision, **ends,
        }  # fmt: skip
        write_json(folder / "config.json", published | places)
    _write_processor(folder, tokenizer, published=layout == "hub")
    return model


def load_processor(folder: Path) -> Any:
    """transformers' processor with the Pillow image processor."""
    images = SiglipImageProcessorPil(**_IMAGES)
    images.image_seq_length = TOKENS
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens={"image_token": "<image>"})
    return Processor(images, tokenizer, chat_template=CHAT_TEMPLATE)


def _write_processor(folder: Path, tokenizer: Any, *, published: bool) -> None:
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
    )
    usual = {
        "do_convert_rgb": None, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_processor_type": "SiglipImageProcessor", "image_seq_length": TOKENS, "rescale_factor": 1 / 255,
    }  # fmt: skip
    if published:
        write_json(folder / "preprocessor_config.json", _IMAGES | usual | {"processor_class": "PaliGemmaProcessor"})
    else:
        nested = {"image_processor": _IMAGES | usual, "processor_class": "PaliGemmaProcessor"}
        write_json(folder / "processor_config.json", nested)
