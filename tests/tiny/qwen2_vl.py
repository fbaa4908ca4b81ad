"""Qwen2-VL: no windows, two maps with quick_gelu in the tower, chunked M-RoPE of unequal sections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig, Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from tiny import qwen2_5_vl
from tiny import tokenizer as tokenizers
from tiny.common import padded, randomize, renamed, write_json, write_tensors
from tiny.qwen2_5_vl import SETTINGS, Layout, write_processor_files


def build(folder: Path, *, seed: int = 0, layout: Layout = "hub", tie: bool = False) -> Any:
    """Write a tiny Qwen2-VL into `folder`; returns its model in float32.

    layout: "hub": `visual.*`, `model.*`, `lm_head.*` with the flat config of 2024; "saved": what transformers 5 saves;
    "memory": `model.visual.*`, `model.language_model.*` with transformers 5's config.
    tie: the 2B model has no lm_head, the 7B has one.
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
        "sliding_window": 2048,
        "vocab_size": padded(tokenizer.get_vocab_size()),
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    vision = {
        "depth": 3,
        "embed_dim": 64,
        "hidden_size": 128,
        "mlp_ratio": 2,
        "num_heads": 2,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    places = {
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
    }
    rope = {"mrope_section": [4, 6, 6]}
    parameters = {"rope_type": "default", "rope_theta": 1e6, **rope}
    config = Qwen2VLConfig(
        text_config=text | {"rope_parameters": parameters, "tie_word_embeddings": tie},
        vision_config=dict(vision),
        tie_word_embeddings=tie,
        **places,
    )
    model = Qwen2VLForConditionalGeneration(config).eval()
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
        config.architectures = ["Qwen2VLForConditionalGeneration"]
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    if layout == "hub":
        published = {"architectures": config.architectures, "model_type": "qwen2_vl", "torch_dtype": "float32"}
        flat = {"attention_dropout": 0.0, "rope_theta": 1000000.0, "rope_scaling": {"type": "mrope", **rope}}
        more = {"in_chans": 3, "spatial_patch_size": vision["patch_size"]}
        tied = {"tie_word_embeddings": tie, "vision_token_id": ids["<|vision_pad|>"]}
        write_json(folder / "config.json", published | text | places | flat | tied | {"vision_config": vision | more})
    write_processor_files(folder, tokenizer, layout, "Qwen2VLProcessor", SETTINGS)
    return model


def load_processor(folder: Path) -> Any:
    """transformers' processor with the Pillow image processor, and no videos."""
    return qwen2_5_vl.load_processor(folder, Qwen2VLProcessor)
