"""Ovis2: an AIMv2 tower, a visual vocabulary, and the smallest grid of tiles that covers a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from transformers import (
    GenerationConfig,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    Ovis2Processor,
    PreTrainedTokenizerFast,
)
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil

from tiny import tokenizer as tokenizers
from tiny.common import (
    CLIP_MEAN,
    CLIP_STD,
    padded,
    randomize,
    write_json,
    write_processor,
    write_tensors,
    write_tokenizer,
)

Layout = Literal["hub", "saved"]
TILE, MAX_TILES, TOKENS, WORDS = 48, 6, 9, 96  # pixels of a tile, tiles, image tokens of a tile, visual words
AROUND = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
CHAT_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<image>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)


def build(folder: Path, *, seed: int = 0, layout: Layout = "hub", tied: bool = True) -> Any:
    """Write a tiny Ovis2 into `folder`; returns its model in float32, the same for each layout.

    layout: "hub": transformers 4's config and processor files; "saved": what transformers 5 saves. Both name weights
    as they are in memory: `model.vision_tower.*`, `model.visual_embeddings_table.*`, `model.language_model.*`.
    """
    tokenizer = tokenizers.qwen((*tokenizers.QWEN_SPECIALS, "<IMG_ATOM>", *AROUND))
    ids = tokenizers.added_ids(tokenizer)
    text = {
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": 128,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "max_window_layers": 2,
        "rms_norm_eps": 1e-6,
        "use_sliding_window": False,
        "vocab_size": padded(tokenizer.get_vocab_size()),
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "tie_word_embeddings": tied,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": TILE,
        "patch_size": 8,
        "vocab_size": WORDS + len(AROUND),
        "hidden_stride": 2,
        "num_visual_indicator_tokens": len(AROUND),
        "rms_norm_eps": 1e-5,
        "qkv_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "tokenize_function": "softmax",
    }
    places = {
        "image_token_id": ids["<IMG_ATOM>"],
        "visual_indicator_token_ids": [ids[token] for token in AROUND],
        "hidden_size": 128,
        "vocab_size": text["vocab_size"],
        "tie_word_embeddings": tied,
    }
    config = Ovis2Config(
        text_config=text | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        vision_config=vision,
        **places,
    )
    model = Ovis2ForConditionalGeneration(config).eval()
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
        write_tensors(folder, model, lambda name: name)
        published = {
            "architectures": ["Ovis2ForConditionalGeneration"],
            "model_type": "ovis2",
            "text_config": text | {"rope_theta": 1e6, "rope_scaling": None, "torch_dtype": "float32"},
            "vision_config": vision,
            "torch_dtype": "float32",
        }
        write_json(folder / "config.json", published | places)
        model.generation_config.save_pretrained(folder)
    _write_processor(folder, tokenizer, layout)
    return model


def load_processor(folder: Path) -> Any:
    """transformers' processor with the Pillow image processor."""
    return Ovis2Processor(
        image_processor=Ovis2ImageProcessorPil(**_settings()),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder),
        image_seq_length=TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def _settings() -> dict[str, Any]:
    size = {"height": TILE, "width": TILE}
    return {
        "size": size, "crop_to_patches": True, "max_patches": MAX_TILES, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
    }  # fmt: skip


def _write_processor(folder: Path, tokenizer: Any, layout: Layout) -> None:
    write_tokenizer(
        folder, tokenizer, kind="Qwen2Tokenizer", published=layout == "hub", template=CHAT_TEMPLATE,
        eos_token="<|im_end|>", pad_token="<|endoftext|>",
    )  # fmt: skip
    if layout == "saved":
        images = Ovis2ImageProcessorPil(**_settings())
        write_processor(folder, "Ovis2Processor", images, CHAT_TEMPLATE, image_seq_length=TOKENS)
        return
    usual = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3}
    kind = {"image_processor_type": "Ovis2ImageProcessor", "processor_class": "Ovis2Processor"}
    more = {"min_patches": 1, "use_covering_area_grid": True, "rescale_factor": 1 / 255}
    write_json(folder / "preprocessor_config.json", _settings() | usual | kind | more)
    write_json(folder / "processor_config.json", {"image_seq_length": TOKENS, "processor_class": "Ovis2Processor"})
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
