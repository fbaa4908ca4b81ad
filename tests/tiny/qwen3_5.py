"""Qwen3.5: three layers of delta rule and one of gated attention, twice as many heads of values as of keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import GenerationConfig, Qwen3_5Config, Qwen3_5ForConditionalGeneration, Qwen3VLProcessor

from tiny import qwen2_5_vl, qwen3_vl
from tiny import tokenizer as tokenizers
from tiny.common import padded, randomize, write_json, write_safetensors, write_tensors
from tiny.qwen2_5_vl import SETTINGS, Layout, write_processor_files
from tiny.qwen3_vl import HALF

THINK = """    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- else %}
        {{- '<think>\\n' }}
    {%- endif %}
"""
ASKS = "    {{- '<|im_start|>assistant\\n' }}\n"
CHAT_TEMPLATE = qwen3_vl.CHAT_TEMPLATE.replace(ASKS, ASKS + THINK)
assert CHAT_TEMPLATE != qwen3_vl.CHAT_TEMPLATE
ROPE = {
    "mrope_interleaved": True, "mrope_section": [3, 3, 2], "rope_type": "default", "rope_theta": 1e7,
    "partial_rotary_factor": 0.25,
}  # fmt: skip
TEXT = {
    "attention_bias": False,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "hidden_act": "silu",
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}


def build(folder: Path, *, seed: int = 0, layout: Layout = "hub", tie: bool = True) -> Any:
    """Write a tiny Qwen3.5 into `folder`; returns its model in float32.

    layout: "hub": a config with full_attention_interval; "saved": what transformers 5 saves; "memory": its config with
    the names of `state_dict`.
    tie: the small models have no lm_head, the 9B has one; here with layers that guess further tokens beside it.
    """
    tokenizer = tokenizers.qwen(pattern=tokenizers.QWEN3_5_PATTERN)
    ids = tokenizers.added_ids(tokenizer)
    text = TEXT | {"vocab_size": padded(tokenizer.get_vocab_size()), "eos_token_id": ids["<|endoftext|>"]}
    vision = {
        "depth": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 64,
        "in_channels": 3,
        "intermediate_size": 128,
        "num_heads": 2,
        "num_position_embeddings": 36,
        "out_hidden_size": 96,
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
    config = Qwen3_5Config(
        text_config=text | {"rope_parameters": ROPE, "tie_word_embeddings": tie}, vision_config=dict(vision),
        tie_word_embeddings=tie, **places,
    )  # fmt: skip
    model = Qwen3_5ForConditionalGeneration(config).eval()
    randomize(model, seed, list(ids.values()))
    settle(model, seed)
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
    )
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "saved":
        model.save_pretrained(folder)
    else:
        write_tensors(folder, model)
        if not tie:
            write_safetensors(folder, load_file(folder / "model.safetensors") | {"mtp.fc.weight": torch.ones(96, 192)})
        config.architectures = ["Qwen3_5ForConditionalGeneration"]
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    if layout == "hub":
        more = {"model_type": "qwen3_5_text", "rope_parameters": ROPE, "full_attention_interval": 4, "dtype": "float32"}
        parts = {"text_config": text | more, "vision_config": vision | {"model_type": "qwen3_5"}}
        kind = {"architectures": config.architectures, "model_type": "qwen3_5", "tie_word_embeddings": tie}
        write_json(folder / "config.json", kind | places | parts)
    settings = SETTINGS | {"image_mean": HALF, "image_std": HALF}
    write_processor_files(folder, tokenizer, layout, "Qwen3VLProcessor", settings, CHAT_TEMPLATE)
    return model


@torch.no_grad()
def settle(model: Any, seed: int) -> None:
    """What `randomize` cannot know: norms that are stored less one, and heads that remember for a few positions or
    for hundreds."""
    random = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.model.language_model.named_parameters():
        if name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
            parameter.sub_(1)
        elif name.endswith(("A_log", "dt_bias")):
            parameter.copy_(-1.5 + torch.randn(parameter.shape, generator=random))
        elif name.endswith(("in_proj_a.weight", "in_proj_b.weight")):
            parameter.mul_(0.3)  # how fast heads forget and learn changes with the input, and not at its every rounding


def load_processor(folder: Path) -> Any:
    """transformers' processor with the Pillow image processor, and no videos."""
    return qwen2_5_vl.load_processor(folder, Qwen3VLProcessor, CHAT_TEMPLATE)
