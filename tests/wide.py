"""Checkpoints as wide as published models, of noise, most of them a few layers deep: for memory and time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import gemma3, internvl, lfm2_vl, paligemma, qwen2_5_vl, qwen2_vl, qwen3_5, qwen3_vl
from transformers import AutoConfig, AutoModelForImageTextToText

QWEN = {  # Qwen2.5-VL-3B-Instruct
    "text_config": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 2,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "window_size": 112,
        "out_hidden_size": 2048,
    },
    "tie_word_embeddings": True,
}
QWEN2 = {  # Qwen2-VL-2B-Instruct
    "text_config": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 2,
        "embed_dim": 1280,
        "hidden_size": 1536,
        "num_heads": 16,
        "mlp_ratio": 4,
        "patch_size": 14,
    },
    "tie_word_embeddings": True,
}
QWEN3 = {  # Qwen3-VL-2B-Instruct
    "text_config": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {
        "depth": 3,
        "deepstack_visual_indexes": [0, 1],
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "patch_size": 16,
        "out_hidden_size": 2048,
    },
    "tie_word_embeddings": True,
}
QWEN3_5 = {  # Qwen3.5-0.8B
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 3584,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 16,
        "vocab_size": 248320,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e7,
            "mrope_section": [11, 11, 10],
            "mrope_interleaved": True,
            "partial_rotary_factor": 0.25,
        },
    },
    "vision_config": {
        "depth": 2,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_heads": 12,
        "num_position_embeddings": 2304,
        "patch_size": 16,
        "out_hidden_size": 1024,
    },
    "tie_word_embeddings": True,
}
LFM2 = {  # LFM2.5-VL-1.6B
    "text_config": {
        "hidden_size": 2048,
        "intermediate_size": 12288,
        "block_auto_adjust_ff_dim": True,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 65536,
        "tie_word_embeddings": True,
    },
    "vision_config": {
        "num_hidden_layers": 2,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_patches": 256,
        "patch_size": 16,
    },
    "projector_hidden_size": 2048,
    "projector_use_layernorm": False,
    "encoder_patch_size": 16,
    "tile_size": 512,
    "tie_word_embeddings": True,
}
LFM2_450M = {  # LFM2-VL-450M, whole
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 6656,  # 4608 of the MLP
        "block_auto_adjust_ff_dim": True,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "num_hidden_layers": 16,
        "layer_types": ["full_attention" if i in (2, 5, 8, 10, 12, 14) else "conv" for i in range(16)],
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 65536,
        "tie_word_embeddings": True,
    },
    "vision_config": {
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_patches": 256,
        "patch_size": 16,
    },
    "projector_hidden_size": 2560,
    "projector_use_layernorm": True,
    "encoder_patch_size": 16,
    "tile_size": 512,
    "tie_word_embeddings": True,
}
GEMMA = {  # Gemma 3 4B
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 1024,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
    },
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 256,
    "tie_word_embeddings": True,
}
PALIGEMMA = {  # PaliGemma 3B at 224 pixels
    "text_config": {
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 257216,
    },
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 2048,
    },
    "hidden_size": 2048,
    "projection_dim": 2048,
    "tie_word_embeddings": True,
}
INTERNVL = {  # InternVL3-2B
    "text_config": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151674,
    },
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "image_size": [448, 448],
        "patch_size": [14, 14],
    },
    "image_seq_length": 256,
}


def write_noise(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of bfloat16 noise, at most 64 MB of it in memory; norms' weights are near one."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text, rng = json.dumps(header).encode(), np.random.default_rng(0)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            scale = np.float32(shape[-1] ** -0.5)
            middle = np.float32(len(shape) == 1 and name.endswith("weight"))
            for start in range(0, math.prod(shape), 1 << 24):
                values = rng.standard_normal(min(1 << 24, math.prod(shape) - start), np.float32) * scale + middle
                stream.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())


def widen(folder: Path, sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Give a checkpoint in transformers' own layout other sizes, by transformers' own shapes, which are returned."""
    config = json.loads((folder / "config.json").read_text())
    for key, value in sizes.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.get("tie_word_embeddings"):
        del shapes["lm_head.weight"]
    (folder / "model.safetensors").unlink()
    write_noise(folder / "model.safetensors", shapes)
    return shapes


def change_images(folder: Path, tokens: int | None = None, **settings: Any) -> None:
    path = next(p for name in ("processor_config.json", "preprocessor_config.json") if (p := folder / name).exists())
    read = json.loads(path.read_text())
    read.get("image_processor", read).update(settings)
    if tokens:
        read["image_seq_length"] = tokens
    path.write_text(json.dumps(read))


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


QWEN_SIZE = {"size": {"shortest_edge": 65536, "longest_edge": 262144}}
LFM2_SIZE = {"encoder_patch_size": 16, "tile_size": 512, "min_image_tokens": 64, "max_image_tokens": 256}
# builder, its options, sizes, image tokens in the processor's file, settings of its image processor
WIDE: dict[str, tuple[Any, dict[str, Any], dict[str, Any], int | None, dict[str, Any]]] = {
    "Qwen2-VL-2B": (qwen2_vl.build, {"tie": True}, QWEN2, None, {"patch_size": 14, **QWEN_SIZE}),
    "Qwen2.5-VL-3B": (qwen2_5_vl.build, {"tie": True}, QWEN, None, {"patch_size": 14, **QWEN_SIZE}),
    "Qwen3-VL-2B": (qwen3_vl.build, {"tie": True}, QWEN3, None, {"patch_size": 16, **QWEN_SIZE}),
    "Qwen3.5-0.8B": (qwen3_5.build, {}, QWEN3_5, None, {"patch_size": 16, **QWEN_SIZE}),
    "LFM2.5-VL-1.6B": (lfm2_vl.build, {}, LFM2, None, LFM2_SIZE),
    "InternVL3-2B": (internvl.build, {}, INTERNVL, 256, {"size": square(448)}),
    "PaliGemma-3B": (paligemma.build, {}, PALIGEMMA, None, {"size": square(224), "image_seq_length": 256}),
    "Gemma-3-4B": (gemma3.build, {}, GEMMA, 256, {"size": square(896)}),
}
# As deep as published, too.
WHOLE = {"LFM2-VL-450M": (lfm2_vl.build, {}, LFM2_450M, None, LFM2_SIZE)}


def write_wide(folder: Path, name: str, **changes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Write a model of `WIDE` or `WHOLE` into `folder`; its tensors' shapes. changes: of the parts of its config."""
    build, options, sizes, tokens, settings = (WIDE | WHOLE)[name]
    build(folder, layout="memory", **options)
    shapes = widen(folder, sizes | {part: sizes[part] | values for part, values in changes.items()})
    change_images(folder, tokens, **settings)
    return shapes
