"""Mistral3, Pixtral in LLaVA's layout, and LightOnOCR: a tower for any grid, rows of image tokens with breaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal
from unittest import mock

from transformers import (
    GenerationConfig,
    LightOnOcrConfig,
    LightOnOcrForConditionalGeneration,
    LightOnOcrProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.pixtral import image_processing_pil_pixtral
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from tiny import tokenizer as tokenizers
from tiny.common import (
    CLIP_MEAN,
    CLIP_STD,
    padded,
    randomize,
    renamed,
    write_json,
    write_processor,
    write_tensors,
    write_tokenizer,
)

# The processor's module takes one function from the image processor that needs torchvision; Pillow's has it, too.
with mock.patch.dict(
    "sys.modules", {"transformers.models.pixtral.image_processing_pixtral": image_processing_pil_pixtral}
):
    from transformers.models.pixtral.processing_pixtral import PixtralProcessor

Layout = Literal["hub", "saved", "memory"]
Kind = Literal["mistral3", "llava", "lighton_ocr"]
PATCH, LONGEST = 8, 128
TOKENS = ("[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]")
NAMES = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
INSTRUCT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST]' }}{% for block in message['content'] %}"
    "{% if block['type'] == 'text' %}{{ block['text'] }}{% elif block['type'] == 'image' %}{{ '[IMG]' }}{% endif %}"
    "{% endfor %}{{ '[/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'][0]['text'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '[IMG]' }}{% elif content['type'] == 'text' %}{{ content['text'] }}"
    "{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CLASSES: dict[str, tuple[Any, Any, Any]] = {
    "mistral3": (Mistral3Config, Mistral3ForConditionalGeneration, PixtralProcessor),
    "llava": (LlavaConfig, LlavaForConditionalGeneration, PixtralProcessor),
    "lighton_ocr": (LightOnOcrConfig, LightOnOcrForConditionalGeneration, LightOnOcrProcessor),
}


def build(
    folder: Path, *, kind: Kind = "mistral3", seed: int = 0, layout: Layout = "hub", tie: bool = False,
    text_options: dict[str, Any] | None = None,
) -> Any:  # fmt: skip
    """Write a tiny model into `folder`; returns it in float32.

    layout: "hub": as transformers 4 wrote it, `vision_tower.*`, `language_model.model.*`, `language_model.lm_head.*`;
    "saved": what transformers 5 saves; "memory": `model.*` and `lm_head.*`.
    """
    added = (*tokenizers.QWEN_SPECIALS, *TOKENS)
    tokenizer = tokenizers.qwen(added) if kind == "lighton_ocr" else tokenizers.tekken(added)
    ids = tokenizers.added_ids(tokenizer)
    merge = 1 if kind == "llava" else 2
    text = {
        "model_type": "qwen3" if kind == "lighton_ocr" else "mistral",
        "head_dim": 48,
        "hidden_size": 128,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "vocab_size": padded(tokenizer.get_vocab_size()),
        "tie_word_embeddings": tie,
        **(text_options or {}),
    }
    vision = {
        "model_type": "pixtral",
        "hidden_act": "silu" if kind == "lighton_ocr" else "gelu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "head_dim": 32,
        "image_size": LONGEST,
        "patch_size": PATCH,
    }
    parts = {"text_config": text, "vision_config": vision}
    settings: dict[str, Any] = {"tie_word_embeddings": tie}
    if kind == "lighton_ocr":
        settings |= {"image_token_id": ids["[IMG]"], "spatial_merge_size": 2}
    else:
        settings |= {"image_token_index": ids["[IMG]"], "vision_feature_layer": -1, "projector_hidden_act": "gelu"}
        settings |= {"spatial_merge_size": 2} if merge == 2 else {"vision_feature_select_strategy": "full"}
        settings |= {"multimodal_projector_bias": kind == "llava"}
    config_class, model_class, processor = CLASSES[kind]
    config = config_class(**{name: dict(part) for name, part in parts.items()}, **settings)
    model = model_class(config).eval()
    randomize(model, seed, list(ids.values()))
    model.generation_config = GenerationConfig(eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"])
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "saved":
        model.save_pretrained(folder)
    else:
        hub = renamed(
            (r"lm_head\.", "language_model.lm_head."),
            (r"model\.language_model\.", "language_model.model."),
            (r"model\.", ""),
        )
        named = hub if layout == "hub" and kind != "lighton_ocr" else lambda name: name
        write_tensors(folder, model, named)
        config.architectures = [model_class.__name__]
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    if layout == "hub":
        published = {"architectures": [model_class.__name__], "model_type": kind, "torch_dtype": "float32"}
        flat = {"rope_theta": 10000.0}
        write_json(folder / "config.json", published | parts | settings | {"vision_config": vision | flat})
    write_tokenizer(
        folder, tokenizer, kind="Qwen2Tokenizer", published=layout == "hub", template=None,
        eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=NAMES,
    )  # fmt: skip
    name, template = processor.__name__, CHATML if kind == "lighton_ocr" else INSTRUCT
    if layout == "hub":
        usual = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3}
        said = {"image_processor_type": "PixtralImageProcessor", "processor_class": name, "rescale_factor": 1 / 255}
        write_json(folder / "preprocessor_config.json", _images(merge) | usual | said)
        write_json(folder / "processor_config.json", {"processor_class": name, **_lengths(kind)})
        (folder / "chat_template.jinja").write_text(template, "utf-8")
    else:
        write_processor(folder, name, PixtralImageProcessorPil(**_images(merge)), template, **_lengths(kind))
    return model


def _images(merge: int) -> dict[str, Any]:
    side = PATCH * merge
    size = {"size": {"longest_edge": LONGEST}, "patch_size": {"height": side, "width": side}}
    return size | {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}


def _lengths(kind: Kind) -> dict[str, Any]:
    own = {} if kind == "lighton_ocr" else NAMES
    return {"patch_size": PATCH, "spatial_merge_size": 1 if kind == "llava" else 2, **own}


def load_processor(folder: Path, *, kind: Kind = "mistral3") -> Any:
    """transformers' processor with the Pillow image processor; its class asks for torchvision and does not use it."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=NAMES)
    _, _, processor = CLASSES[kind]
    images = PixtralImageProcessorPil(**_images(1 if kind == "llava" else 2))
    template = CHATML if kind == "lighton_ocr" else INSTRUCT
    there = {"torchvision": (lambda: True, "")}
    with mock.patch.dict("transformers.utils.import_utils.BACKENDS_MAPPING", there):
        return processor(images, tokenizer, chat_template=template, **_lengths(kind))
