"""LFM3-VL: convolutions over the grid before, between and behind grouped attention, two RoPEs, a window of 8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Regex, pre_tokenizers
from transformers import GenerationConfig, Lfm3VlConfig, Lfm3VlForConditionalGeneration, Lfm3VlProcessor

from tiny import qwen2_5_vl, qwen3_vl
from tiny import tokenizer as tokenizers
from tiny.common import padded, randomize, write_json, write_tensors, write_tokenizer
from tiny.lfm2_vl import FIRST, LLAMA3
from tiny.qwen2_5_vl import SETTINGS, Layout, write_processor_files
from tiny.qwen3_vl import HALF

ADDED = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT_TEMPLATE = "{{- bos_token -}}" + qwen3_vl.CHAT_TEMPLATE


def build(folder: Path, *, seed: int = 0, layout: Layout = "hub", plain: bool = False) -> Any:
    """Write a tiny LFM3-VL into `folder`; returns its model in float32.

    layout: "hub": a config without what has defaults, and an image processor of the authors' code; "saved": what
    transformers 5 saves; "memory": its config with the names of `state_dict`.
    plain: without norms behind parts and gates, with biases, untied.
    """
    tokenizer = _tokenizer()
    ids = tokenizers.added_ids(tokenizer)
    text = {
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 5,
        "layer_types": ["conv", "full_attention", "conv", "sliding_attention", "conv"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "conv_L_cache": 7,
        "sliding_window": 8,
        "max_position_embeddings": 2048,
        "norm_eps": 1e-5,
        "use_sandwich_norm": not plain,
        "use_attention_gate": not plain,
        "attention_bias": plain,
        "vocab_size": padded(tokenizer.get_vocab_size()),
        "bos_token_id": ids["<|startoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|pad|>"],
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 5,
        "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    places = {
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "projector_hidden_size": 128,
        "tie_word_embeddings": not plain,
    }
    config = Lfm3VlConfig(
        text_config=text | {"model_type": "lfm3", "tie_word_embeddings": not plain}, vision_config=dict(vision),
        **places,
    )  # fmt: skip
    model = Lfm3VlForConditionalGeneration(config).eval()
    randomize(model, seed, list(ids.values()), head=1.0)
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<|startoftext|>"], pad_token_id=ids["<|pad|>"], eos_token_id=ids["<|im_end|>"]
    )
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "memory":
        write_tensors(folder, model)
        config.architectures = ["Lfm3VlForConditionalGeneration"]
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    else:
        model.save_pretrained(folder)
    if layout == "hub":
        parts = {"text_config": text | {"model_type": "lfm3"}, "vision_config": vision}
        kind = {"architectures": config.architectures, "model_type": "lfm3_vl", "dtype": "float32"}
        write_json(folder / "config.json", kind | places | parts)
    _write_processor(folder, tokenizer, layout)
    return model


def _tokenizer() -> Any:
    splits = [
        pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return tokenizers.byte_level(FIRST, ADDED, splits, bos="<|startoftext|>")


def _write_processor(folder: Path, tokenizer: Any, layout: Layout) -> None:
    settings = SETTINGS | {"image_mean": HALF, "image_std": HALF}
    write_processor_files(folder, tokenizer, layout, "Lfm3VlProcessor", settings, CHAT_TEMPLATE)
    tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    write_tokenizer(
        folder, tokenizer, kind="PreTrainedTokenizerFast", published=layout == "hub", template=CHAT_TEMPLATE, **tokens
    )


def load_processor(folder: Path) -> Any:
    """transformers' processor with the Pillow image processor, and no videos.

    A prompt that begins with BOS gets no second one, as where apply_chat_template tokenizes it.
    """
    processor = qwen2_5_vl.load_processor(folder, Lfm3VlProcessor, CHAT_TEMPLATE)
    processor.text_kwargs = {**processor.text_kwargs, "add_special_tokens": False}
    return processor
