"""nanoVLM in its own layout. Its weights are those of an Idefics3 model, which is the oracle.

Tiles, tokens and prompt follow data/custom_transforms.py and data/processors.py of huggingface/nanoVLM: pixels are only
divided by 255, and the whole picture is made from the resized one in floating point.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_model
from tokenizers import pre_tokenizers
from transformers import (
    BatchFeature,
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from tiny import tokenizer as tokenizers
from tiny.common import padded, randomize, write_json, write_tokenizer

TILE, MAX_EDGE, SHUFFLE, TOKENS = 48, 144, 2, 9  # pixels of a tile, longest side, pixel shuffle, image tokens of a tile
FIRST = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EXTRA = {"image_token": "<|image|>", "global_image_token": "<|global_image|>"} | {
    f"r{row}c{column}": f"<row_{row}_col_{column}>" for row in range(1, 9) for column in range(1, 9)
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}"
    "}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build(folder: Path, *, seed: int = 0, tie: bool = True) -> Any:
    """Write a tiny nanoVLM into `folder`; returns the Idefics3 model of the same weights, in float32.

    config.json is flat (`vit_*`, `lm_*`, `mp_*`); model.safetensors is what `save_model` writes: with `tie`, as
    published, `decoder.head.weight` stands for `decoder.token_embedding.weight` too. Published folders have these two
    files only and name the tokenizer's repository; here it lies beside them, with the extra tokens in it.
    """
    splits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer = tokenizers.byte_level(FIRST, tuple(EXTRA.values()), splits)
    ids = tokenizers.added_ids(tokenizer)
    config = Idefics3Config(
        text_config={
            "model_type": "llama",
            "hidden_size": 128,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "vocab_size": padded(tokenizer.get_vocab_size()),
            "pad_token_id": ids["<|im_end|>"],
            "tie_word_embeddings": tie,
        },
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": TILE,
            "patch_size": 8,
        },
        scale_factor=SHUFFLE,
        image_token_id=ids["<|image|>"],
        pad_token_id=ids["<|im_end|>"],
        tie_word_embeddings=tie,
    )
    model = Idefics3ForConditionalGeneration(config).eval()
    randomize(model, seed, list(ids.values()))
    end = ids["<|im_end|>"]
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=end, pad_token_id=end)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(_as_nanovlm(model, tie), str(folder / "model.safetensors"))
    write_json(folder / "config.json", _config(model, tie))
    write_tokenizer(
        folder,
        tokenizer,
        kind="GPT2Tokenizer",
        published=True,
        template=CHAT_TEMPLATE,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        extra_special_tokens=EXTRA,
    )
    return model


class Processor:
    """What nanoVLM does to pictures and messages, in the interface of transformers' processors."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.image_token_id = tokenizer.convert_tokens_to_ids("<|image|>")

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        """The prompt; every picture is "<|image|>" once, until it is called."""

        def flat(content: Any) -> str:
            return "".join("<|image|>" if part["type"] == "image" else part["text"] for part in content)

        plain = [{"role": message["role"], "content": flat(message["content"])} for message in messages]
        text: str = self.tokenizer.apply_chat_template(plain, chat_template=CHAT_TEMPLATE, **options)
        return text

    def __call__(self, *, text: str, images: Sequence[Image.Image] | None, return_tensors: str) -> BatchFeature:
        views, grids = [], []
        for image in images or ():
            tiles, grid = split(image)
            views.append(tiles)
            grids.append(grid)
        parts = iter(image_tokens(grid, index if len(grids) > 1 else None) for index, grid in enumerate(grids))
        inputs = self.tokenizer(re.sub(r"<\|image\|>", lambda _: next(parts), text), return_tensors=return_tensors)
        data = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        if views:
            data["pixel_values"] = torch.cat(views)[None]
        return BatchFeature(data)


def load_processor(folder: Path) -> Processor:
    """nanoVLM's processing with the tokenizer of `folder`."""
    return Processor(PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=EXTRA))


def split(image: Image.Image) -> tuple[torch.Tensor, tuple[int, int]]:
    """(views, 3, TILE, TILE) in 0..1, the whole picture first if there are several, and the grid (rows, columns)."""
    width, height = image.size
    long, short = max(width, height), min(width, height)
    edge = min(MAX_EDGE, math.ceil(long / TILE) * TILE)
    other = max(math.ceil(short * (edge / long) / TILE) * TILE, TILE)
    size = (edge, other) if width >= height else (other, edge)
    pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float32) / 255
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    rows, columns = size[1] // TILE, size[0] // TILE
    tiles = planes.reshape(3, rows, TILE, columns, TILE).permute(1, 3, 0, 2, 4).reshape(-1, 3, TILE, TILE)
    if len(tiles) == 1:
        return tiles, (1, 1)
    whole = torch.nn.functional.interpolate(planes[None], (TILE, TILE), mode="bilinear", antialias=True)
    return torch.cat([whole, tiles]), (rows, columns)


def image_tokens(grid: tuple[int, int], index: int | None) -> str:
    """The text that stands for one picture; `index` counts pictures from 0, if there are several."""
    rows, columns = grid
    run = "<|image|>" * TOKENS
    text = (f"<image: {index}>" if index is not None else "") + "<|global_image|>" + run
    if grid == (1, 1):
        return text
    places = ((row, column) for row in range(1, rows + 1) for column in range(1, columns + 1))
    return text + "".join(f"<row_{row}_col_{column}>{run}" for row, column in places)


def _as_nanovlm(model: Any, tie: bool) -> torch.nn.Module:
    """A module with nanoVLM's tensor names and the weights of `model`, tied like it."""
    state = model.state_dict()
    rules = (
        (r"model\.connector\.modality_projection\.proj", "MP.proj"),
        (r"model\.vision_model\.post_layernorm", "vision_encoder.layer_norm"),
        (r"model\.vision_model\.embeddings\.patch_embedding", "vision_encoder.patch_embedding.conv"),
        (r"model\.vision_model\.embeddings\.(position_embedding)\.weight", r"vision_encoder.patch_embedding.\1"),
        (r"model\.vision_model\.encoder\.layers", "vision_encoder.blocks"),
        (r"model\.text_model\.embed_tokens", "decoder.token_embedding"),
        (r"model\.text_model\.layers", "decoder.blocks"),
        (r"model\.text_model\.norm", "decoder.norm"),
        (r"lm_head", "decoder.head"),
        (r"layer_norm([12])", r"ln\1"),
        (r"input_layernorm", "norm1"),
        (r"post_attention_layernorm", "norm2"),
        (r"self_attn\.o_proj", "attn.out_proj"),
        (r"self_attn", "attn"),
    )
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if fused := re.match(r"(model\.vision_model.*\.self_attn)\.q_proj\.(weight|bias)", name):
            tensor = torch.cat([state[f"{fused[1]}.{part}_proj.{fused[2]}"] for part in "qkv"])
            name = f"{fused[1]}.qkv_proj.{fused[2]}"
        elif re.match(r"model\.vision_model.*\.self_attn\.[kv]_proj", name):
            continue
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor[None] if name.endswith("position_embedding") else tensor
    head_dim, base = model.config.text_config.head_dim, 100000.0
    tensors["decoder.rotary_embd.inv_freq"] = 1 / base ** (torch.arange(0, head_dim, 2).float() / head_dim)
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        at = root
        for part in path:
            if part not in dict(at.named_children()):
                at.add_module(part, torch.nn.Module())
            at = at.get_submodule(part)
        at.register_buffer(leaf, tensor)
    if tie:
        root.get_submodule("decoder.head").weight = root.get_submodule("decoder.token_embedding").weight
    return root


def _config(model: Any, tie: bool) -> dict[str, Any]:
    """asdict(VLMConfig) of the model."""
    vision, text = model.config.vision_config, model.config.text_config
    extra = len(EXTRA)
    return {
        "vit_hidden_dim": vision.hidden_size,
        "vit_inter_dim": vision.intermediate_size,
        "vit_patch_size": vision.patch_size,
        "vit_img_size": vision.image_size,
        "vit_n_heads": vision.num_attention_heads,
        "vit_dropout": 0.0,
        "vit_n_blocks": vision.num_hidden_layers,
        "vit_ln_eps": 1e-06,
        "vit_cls_flag": False,
        "vit_model_type": "google/siglip2-base-patch16-512",
        "lm_hidden_dim": text.hidden_size,
        "lm_inter_dim": text.intermediate_size,
        "lm_rms_eps": text.rms_norm_eps,
        "lm_re_base": 100000,
        "lm_max_position_embeddings": text.max_position_embeddings,
        "lm_base_vocab_size": text.vocab_size - extra,
        "extra_token_amount": extra,
        "lm_vocab_size": text.vocab_size,
        "lm_n_heads": text.num_attention_heads,
        "lm_n_kv_heads": text.num_key_value_heads,
        "lm_dropout": 0.0,
        "lm_n_blocks": text.num_hidden_layers,
        "lm_attn_scaling": 1.0,
        "lm_max_length": 2048,
        "lm_use_tokens": False,
        "lm_tie_weights": tie,
        "lm_model_type": "HuggingFaceTB/SmolLM2-360M-Instruct",
        "lm_tokenizer": "HuggingFaceTB/SmolLM2-360M-Instruct",
        "lm_chat_template": CHAT_TEMPLATE,
        "mp_pixel_shuffle_factor": SHUFFLE,
        "mp_image_token_length": TOKENS,
        "max_img_size": MAX_EDGE,
        "resize_to_max_side_len": False,
        "vlm_extra_tokens": EXTRA,
        "vlm_load_backbone_weights": True,
        "vlm_checkpoint_path": "checkpoints",
        "hf_repo_name": "nanoVLM",
    }
