"""LFM2-VL: a table of 6 x 6 positions below and above its views' grids, tiles of 48 pixels, layers of both kinds."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
import transformers.image_processing_backends as backends
import transformers.utils as utils
from PIL import Image
from tokenizers import Regex, pre_tokenizers
from transformers import (
    GenerationConfig,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    Lfm2VlProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from tiny import tokenizer as tokenizers
from tiny.common import F32, padded, randomize, renamed, write_json, write_tensors, write_tokenizer

Layout = Literal["hub", "saved", "memory"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FIRST = ("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|fim_pre|>", "<|im_start|>", "<|im_end|>")
TILES = [f"<|img_row_{row}_col_{col}|>" for row in range(1, 7) for col in range(1, 7)]
ADDED = ("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *TILES)
CHAT_TEMPLATE = (
    "{{- bos_token -}}{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for item in message['content'] -%}{%- if item['type'] == 'image' -%}{{- '<image>' -}}"
    "{%- elif item['type'] == 'text' -%}{{- item['text'] -}}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
PICTURES = {
    "downsample_factor": 2, "encoder_patch_size": 8, "min_image_tokens": 4, "max_image_tokens": 12, "tile_size": 48,
    "min_tiles": 2, "max_tiles": 6, "max_pixels_tolerance": 2.0, "do_image_splitting": True,
}  # fmt: skip


def build(folder: Path, *, seed: int = 0, layout: Layout = "hub") -> Any:
    """Write a tiny LFM2-VL into `folder`; returns its model in float32.

    layout: "hub": `model.vision_tower.vision_model.*`, with thumbnails and a norm in the projector; "saved": what
    transformers 5 saves, without both; "memory": the names of its state_dict, pictures never cut.
    """
    tokenizer = _tokenizer()
    ids = tokenizers.added_ids(tokenizer)
    text = {
        "model_type": "lfm2",
        "hidden_size": 128,
        "intermediate_size": 230,  # 160 of the MLP
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
        "num_hidden_layers": 4,
        "layer_types": ["conv", "full_attention", "conv", "conv"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "conv_L_cache": 3,
        "conv_bias": False,
        "max_position_embeddings": 2048,
        "norm_eps": 1e-5,
        "vocab_size": padded(tokenizer.get_vocab_size()),
        "bos_token_id": ids["<|startoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|pad|>"],
    }
    vision = {
        "model_type": "siglip2_vision_model",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_patches": 36,
        "patch_size": 8,
        "vision_use_head": False,
    }
    places = {
        "image_token_id": ids["<image>"],
        "downsample_factor": 2,
        "projector_hidden_size": 96,
        "projector_use_layernorm": layout == "hub",
    }
    parameters = {"rope_type": "default", "rope_theta": 1e6}
    config = Lfm2VlConfig(text_config=text | {"rope_parameters": parameters}, vision_config=dict(vision), **places)
    model = Lfm2VlForConditionalGeneration(config).eval()
    randomize(model, seed, list(ids.values()))
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<|startoftext|>"], pad_token_id=ids["<|pad|>"], eos_token_id=ids["<|im_end|>"]
    )
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "saved":
        model.save_pretrained(folder)
    else:
        hub = renamed((r"model\.vision_tower\.", "model.vision_tower.vision_model."))
        write_tensors(folder, model, hub if layout == "hub" else lambda name: name)
        config.architectures = ["Lfm2VlForConditionalGeneration"]
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    if layout == "hub":
        published = {"architectures": config.architectures, "model_type": "lfm2_vl", "torch_dtype": "float32"}
        more = {"vision_feature_layer": -1, "projector_hidden_act": "gelu", "projector_bias": True}
        text |= {"rope_theta": 1e6, "tie_embedding": True, "block_use_swiglu": True, "conv_dim": 128}
        write_json(folder / "config.json", published | places | more | {"text_config": text, "vision_config": vision})
    _write_processor(folder, tokenizer, layout)
    return model


def _tokenizer() -> Any:
    splits = [
        pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer = tokenizers.byte_level(FIRST, ADDED, splits, bos="<|startoftext|>")
    tokenizer.model.ignore_merges = True
    return tokenizer


def _write_processor(folder: Path, tokenizer: Any, layout: Layout) -> None:
    tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    write_tokenizer(
        folder, tokenizer, kind="PreTrainedTokenizerFast", published=layout == "hub", template=CHAT_TEMPLATE, **tokens
    )
    kind = "Lfm2VlImageProcessorFast" if layout == "hub" else "Lfm2VlImageProcessor"
    settings = PICTURES | {"image_processor_type": kind, "resample": 2, "use_thumbnail": layout == "hub"}
    settings |= {"do_image_splitting": layout != "memory", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    if layout == "hub":
        write_json(folder / "preprocessor_config.json", settings)
        # Published copies disagree with the image processor's own file, which decides.
        flags = {"processor_class": "Lfm2VlProcessor", "use_image_special_tokens": True, "use_thumbnail": False}
        write_json(folder / "processor_config.json", flags)
    else:
        nested = {"image_processor": settings, "processor_class": "Lfm2VlProcessor"}
        write_json(folder / "processor_config.json", nested)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")


class PillowBackend:
    """What an image processor of transformers takes from its torchvision backend, computed by Pillow.

    torchvision's own bilinear resize of bytes differs from Pillow's by at most one level (in 0.04 to 1.1 % of the
    values, measured on noise), and it rescales and normalizes in one step.
    """

    def __init__(self, **settings: Any) -> None:
        vars(self).update(settings)

    def fetch_images(self, images: Any) -> Any:
        return images

    def __call__(self, images: Any, **settings: Any) -> Any:
        flat = [image for each in images for image in (each if isinstance(each, list) else [each])]
        tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in flat]
        names = self._preprocess.__code__.co_varnames[: self._preprocess.__code__.co_argcount]
        own = {name: getattr(self, name) for name in names if hasattr(self, name)}
        common = {"return_tensors": "pt", "disable_grouping": True}
        return self._preprocess(tensors, **own | common | {k: v for k, v in settings.items() if k in names})

    def resize(self, image: torch.Tensor, size: Any, resample: Any = None, antialias: bool = True) -> torch.Tensor:
        filter_ = Image.Resampling(int(resample))
        pictures = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in image]
        resized = [np.array(each.resize((size.width, size.height), filter_)) for each in pictures]
        return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)

    def rescale_and_normalize(
        self, images: torch.Tensor, do_rescale: bool, factor: float, do_normalize: bool, mean: Any, std: Any
    ) -> torch.Tensor:
        assert do_rescale and do_normalize
        shape = (3, 1, 1)
        scaled = (images.numpy().astype(np.float64) * factor).astype(np.float32)
        return torch.from_numpy((scaled - np.float32(mean).reshape(shape)) / np.float32(std).reshape(shape))


@cache
def image_processor() -> Any:
    """transformers' Lfm2VlImageProcessor over `PillowBackend`: its module asks for torchvision, and uses the base's."""
    stubs = {name: ModuleType(name) for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")}
    stubs["torchvision.transforms.v2"].functional = ModuleType("functional")  # type: ignore[attr-defined]
    found = importlib.util.find_spec("transformers.models.lfm2_vl.image_processing_lfm2_vl")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    with (
        mock.patch.dict(sys.modules, stubs),
        mock.patch.object(backends, "TorchvisionBackend", PillowBackend),
        mock.patch.object(utils, "auto_docstring", lambda documented: documented),  # it wants a registered base
    ):
        found.loader.exec_module(module)
    return module.Lfm2VlImageProcessor


def load_processor(folder: Path) -> Any:
    """transformers' processor over its image processor's own code and Pillow's arithmetic."""
    settings = json.loads((folder / "processor_config.json").read_text())
    if "image_processor" not in settings:
        settings = {"image_processor": json.loads((folder / "preprocessor_config.json").read_text())}
    with mock.patch.object(ProcessorMixin, "check_argument_for_proper_class"):
        return Lfm2VlProcessor(
            image_processor=image_processor()(**settings["image_processor"]),
            tokenizer=PreTrainedTokenizerFast.from_pretrained(folder),
            chat_template=CHAT_TEMPLATE,
        )


def views(inputs: dict[str, Any]) -> list[F32]:
    """Patches row by row, each (8, 8, 3) and padded to the most a view may have, back to pictures."""
    found = []
    for patches, (rows, cols) in zip(inputs["pixel_values"], inputs["spatial_shapes"].tolist(), strict=True):
        assert not patches[rows * cols :].any()
        cells = patches[: rows * cols].reshape(rows, cols, 8, 8, 3)
        found.append(cells.transpose(4, 0, 2, 1, 3).reshape(3, rows * 8, cols * 8))
    return found
