"""Granite Vision 4: two layers' states by means and four corners of one's, before six layers of the decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    GenerationConfig,
    Granite4VisionConfig,
    Granite4VisionForConditionalGeneration,
    Granite4VisionProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from tiny import tokenizer as tokenizers
from tiny.common import padded, randomize, renamed, write_json, write_processor, write_tensors, write_tokenizer
from tiny.granite_docling import CHAT_TEMPLATE, END

Layout = Literal["hub", "saved", "memory"]
SIDE, PATCH = 64, 8
GRIDS = [[1, 2], [2, 1], [2, 2], [1, 3]]
SPECIALS = (END, "<|pad|>", "<|start_of_role|>", "<|end_of_role|>", "<image>")
IMAGES = {
    "size": {"height": SIDE, "width": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
    "image_grid_pinpoints": [[rows * SIDE, cols * SIDE] for rows, cols in GRIDS],
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "resample": 3,
    "do_center_crop": False,
}
LENGTHS = {
    "image_token": "<image>", "vision_feature_select_strategy": "full", "patch_size": PATCH, "downsample_rate": "2/4",
    "num_additional_image_tokens": 0,
}  # fmt: skip


def build(folder: Path, *, seed: int = 0, layout: Layout = "hub", tie: bool = False) -> Any:
    """Write a tiny Granite Vision 4 into `folder`; returns its model in float32.

    layout: "hub": a level more in the tower's names, and a config without what has defaults; "saved" and "memory":
    transformers 5's. tie: the head is the embedding's table.
    """
    tokenizer = tokenizers.qwen(SPECIALS)
    ids = tokenizers.added_ids(tokenizer)
    text = {
        "model_type": "granite4_vision_text",
        "hidden_size": 128,
        "intermediate_size": 160,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "vocab_size": padded(tokenizer.get_vocab_size()),
        "bos_token_id": ids[END],
        "eos_token_id": ids[END],
        "pad_token_id": ids["<|pad|>"],
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.125,
        "logits_scaling": 2.5,
        "tie_word_embeddings": tie,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 128,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": PATCH,
        "vision_use_head": False,
    }
    places = {
        "image_token_index": ids["<image>"],
        "image_grid_pinpoints": IMAGES["image_grid_pinpoints"],
        "vision_feature_select_strategy": "full",
        "downsample_rate": "2/4",
        "deepstack_layer_map": [[-2, 2], [1, 0]],
        "spatial_vision_layer": -2,
        "spatial_target_layers": [1, 3, 5, 4],
        "tie_word_embeddings": tie,
    }
    queries = {
        "model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 96,
        "cross_attention_frequency": 1, "use_qformer_text_input": False,
    }  # fmt: skip
    config = Granite4VisionConfig(
        text_config=dict(text), vision_config=dict(vision), qformer_config=dict(queries), **places
    )
    model = Granite4VisionForConditionalGeneration(config).eval()
    randomize(model, seed, list(ids.values()))
    _settle(model, seed)
    model.generation_config = GenerationConfig(
        bos_token_id=ids[END], pad_token_id=ids["<|pad|>"], eos_token_id=ids[END]
    )
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "saved":
        model.save_pretrained(folder)
    else:
        hub = renamed((r"model\.vision_tower\.", "model.vision_tower.vision_model."))
        write_tensors(folder, model, hub if layout == "hub" else lambda name: name)
        config.architectures = ["Granite4VisionForConditionalGeneration"]
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    if layout == "hub":
        parts = {"text_config": text, "vision_config": vision, "qformer_config": queries}
        kind = {"architectures": config.architectures, "model_type": "granite4_vision", "dtype": "float32"}
        write_json(folder / "config.json", kind | places | parts)
    _write_processor(folder, tokenizer, layout)
    return model


@torch.no_grad()
def _settle(model: Any, seed: int) -> None:
    """What `randomize` does not know: queries and places as large as states, and a newline that shows."""
    random = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.model.named_parameters():
        if name.endswith((".query", "image_positions", "image_newline")):
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=random))


def _write_processor(folder: Path, tokenizer: Any, layout: Layout) -> None:
    tokens = {"bos_token": END, "eos_token": END, "pad_token": "<|pad|>"}
    write_tokenizer(
        folder, tokenizer, kind="GPT2TokenizerFast", published=layout == "hub", template=CHAT_TEMPLATE, **tokens
    )
    name = "Granite4VisionProcessor"
    if layout != "hub":
        write_processor(folder, name, LlavaNextImageProcessorPil(**IMAGES), CHAT_TEMPLATE, **LENGTHS)
        return
    kind = {"image_processor_type": "LlavaNextImageProcessor", "processor_class": name}
    write_json(folder / "preprocessor_config.json", IMAGES | kind)
    write_json(folder / "processor_config.json", {"processor_class": name, **LENGTHS})
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")


def load_processor(folder: Path) -> Any:
    return Granite4VisionProcessor(
        image_processor=LlavaNextImageProcessorPil(**IMAGES),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder),
        chat_template=CHAT_TEMPLATE,
        **LENGTHS,
    )
