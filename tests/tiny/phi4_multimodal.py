"""Phi-4-multimodal: SigLIP on tiles of 96 pixels, Phi-3's decoder with LongRoPE over part of a head, and audio."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
import transformers.image_processing_backends as backends
import transformers.utils as utils
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import (
    GenerationConfig,
    Phi4MultimodalConfig,
    Phi4MultimodalForCausalLM,
    Phi4MultimodalProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from tiny import tokenizer as tokenizers
from tiny.common import F32, padded, randomize, write_json, write_tensors, write_tokenizer
from tiny.lfm2_vl import PillowBackend

Layout = Literal["hub", "saved", "memory"]
TILE, PATCH, MOST = 96, 3, 4  # 32 patches per side: how many tokens they make is a constant of the processor's code
FIRST = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
EXTRA = {"image_token": "<|image|>", "audio_token": "<|audio|>"}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<|image|>' }}{% elif content['type'] == 'audio' %}{{ '<|audio|>' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
LONG = {"short_factor": [1.0 + 0.07 * i for i in range(24)], "long_factor": [1.5 + i for i in range(24)]}
CONTEXT = 4096  # up to which the short factors count


def build(folder: Path, *, seed: int = 0, layout: Layout = "hub", tie: bool = False) -> Any:
    """Write a tiny Phi-4-multimodal into `folder`; returns its model in float32.

    layout: "hub" has the keys of transformers 4; "saved" is what transformers 5 saves; "memory" has the same names.
    """
    splits = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer = tokenizers.byte_level(FIRST, tuple(EXTRA.values()), splits)
    ids = tokenizers.added_ids(tokenizer)
    text = {
        "vocab_size": padded(tokenizer.get_vocab_size()),
        "hidden_size": 192,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32 * CONTEXT,
        "original_max_position_embeddings": CONTEXT,
        "sliding_window": 64 * CONTEXT,
        "tie_word_embeddings": tie,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": [ids["<|endoftext|>"], ids["<|end|>"]],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": TILE,
        "patch_size": PATCH,
        "crop_size": TILE,
        "image_token_id": ids["<|image|>"],
    }
    audio = {
        "hidden_size": 32, "intermediate_size": 32, "num_blocks": 1, "num_attention_heads": 2,
        "ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 32,
        "audio_token_id": ids["<|audio|>"], "input_size": 80,
    }  # fmt: skip
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75, **LONG}
    rope["original_max_position_embeddings"] = CONTEXT
    config = Phi4MultimodalConfig(**text, rope_parameters=rope, vision_config=dict(vision), audio_config=dict(audio))
    model = Phi4MultimodalForCausalLM(config).eval()
    randomize(model, seed, list(ids.values()))
    _temper(model)
    model.model.get_image_features = features_of(model)
    model.generation_config = GenerationConfig(
        bos_token_id=text["bos_token_id"], eos_token_id=text["eos_token_id"], pad_token_id=text["pad_token_id"]
    )
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "saved":
        model.save_pretrained(folder)
    else:
        write_tensors(folder, model)
        config.architectures = ["Phi4MultimodalForCausalLM"]
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    if layout == "hub":
        old = {"rope_theta": 10000.0, "partial_rotary_factor": 0.75, "rope_scaling": {"type": "longrope", **LONG}}
        published = {"architectures": config.architectures, "model_type": "phi4_multimodal", "torch_dtype": "float32"}
        write_json(folder / "config.json", published | text | old | {"vision_config": vision, "audio_config": audio})
    _write_processor(folder, tokenizer, layout)
    return model


@torch.no_grad()
def _temper(model: Any) -> None:
    """What `randomize` would do by other names: encoders stand below the embeddings here, and maps are stacked."""
    for name, parameter in model.named_parameters():
        if "embed_tokens_extend" in name and parameter.ndim > 1 and "position_embedding" not in name:
            parameter /= parameter[0].numel() ** 0.5
        elif "qkv_proj" in name:
            parameter[: 4 * parameter.shape[0] // 5] *= 1.7  # of three heads, and of one that they share
        elif "o_proj" in name or "down_proj" in name:
            parameter *= 2


def features_of(model: Any) -> Any:
    """The features that the model puts in the place of a prompt's image tokens."""

    def get_image_features(input_ids: Any, image_pixel_values: Any, image_sizes: Any, image_attention_mask: Any) -> Any:
        embed, width = model.model.embed_tokens_extend.image_embed, model.config.hidden_size
        blank = torch.zeros(*input_ids.shape, width)
        filled = embed(input_ids, blank, image_pixel_values, image_sizes, image_attention_mask)
        return SimpleNamespace(pooler_output=filled[input_ids == model.config.vision_config.image_token_id])

    return get_image_features


def _write_processor(folder: Path, tokenizer: Any, layout: Layout) -> None:
    names = {"bos_token": FIRST[0], "eos_token": FIRST[0], "pad_token": FIRST[0], "unk_token": FIRST[0]}
    write_tokenizer(
        folder, tokenizer, kind="GPT2Tokenizer", published=layout == "hub", template=None, extra_special_tokens=EXTRA,
        **names,
    )  # fmt: skip
    kind = "Phi4MultimodalImageProcessor" + ("Fast" if layout == "hub" else "")
    settings = {
        "image_processor_type": kind, "size": {"height": TILE, "width": TILE}, "patch_size": PATCH, "dynamic_hd": MOST,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": True, "do_normalize": True,
        "rescale_factor": 1 / 255, "resample": 3,
    }  # fmt: skip
    if layout == "hub":
        write_json(folder / "preprocessor_config.json", settings)
        write_json(folder / "processor_config.json", {"processor_class": "Phi4MultimodalProcessor"})
    else:
        nested = {"image_processor": settings, "processor_class": "Phi4MultimodalProcessor"}
        write_json(folder / "processor_config.json", nested)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")


class Backend(PillowBackend):
    """The same for this processor, whose last resize is of normalized floats."""

    def resize(self, image: torch.Tensor, size: Any, resample: Any = None, antialias: bool = True) -> torch.Tensor:
        assert not antialias and Image.Resampling(int(resample)) == Image.Resampling.BICUBIC
        if image.shape[-2:] == (size.height, size.width):
            return image
        return torch.nn.functional.interpolate(image[None], (size.height, size.width), mode="bicubic")[0]


def _functional() -> ModuleType:
    """What the processor takes from torchvision: a bilinear resize of bytes, by Pillow, and padding."""
    module = ModuleType("functional")

    def resize(image: torch.Tensor, size: list[int]) -> torch.Tensor:
        made = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(made)).permute(2, 0, 1)

    def pad(image: torch.Tensor, padding: list[int], fill: list[int]) -> torch.Tensor:
        left, top, right, bottom = padding
        assert (left, top, len(set(fill))) == (0, 0, 1)
        return torch.nn.functional.pad(image, (0, right, 0, bottom), value=fill[0])

    vars(module).update(resize=resize, pad=pad)
    return module


@cache
def image_processor() -> Any:
    """transformers' Phi4MultimodalImageProcessor over `Backend`."""
    stubs = {name: ModuleType(name) for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")}
    stubs["torchvision.transforms.v2"].functional = _functional()  # type: ignore[attr-defined]
    found = importlib.util.find_spec("transformers.models.phi4_multimodal.image_processing_phi4_multimodal")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    with (
        mock.patch.dict(sys.modules, stubs),
        mock.patch.object(backends, "TorchvisionBackend", Backend),
        mock.patch.object(utils, "auto_docstring", lambda documented: documented),
    ):
        found.loader.exec_module(module)
    return module.Phi4MultimodalImageProcessor


def square(side: int) -> Any:
    """A size as image processors have it."""
    return SimpleNamespace(height=side, width=side)


def load_processor(folder: Path) -> Any:
    """transformers' processor over its image processor's own code, Pillow's and torch's arithmetic."""
    settings = json.loads((folder / "processor_config.json").read_text())
    if "image_processor" not in settings:
        settings = {"image_processor": json.loads((folder / "preprocessor_config.json").read_text())}
    images = image_processor()(**settings["image_processor"] | {"size": square(TILE), "do_resize": True})
    with mock.patch.object(ProcessorMixin, "check_argument_for_proper_class"):
        return Phi4MultimodalProcessor(
            image_processor=images,
            audio_processor=None,
            tokenizer=PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=EXTRA),
            chat_template=CHAT_TEMPLATE,
        )


def views(inputs: dict[str, Any], tile: int = TILE, patch: int = PATCH) -> list[F32]:
    """Of each picture its tiles, without what the mask hides, and then the whole."""
    found = []
    for pixels, mask, (high, wide) in zip(
        inputs["image_pixel_values"], inputs["image_attention_mask"], inputs["image_sizes"].tolist(), strict=True
    ):
        for number in range(1, 1 + high // tile * (wide // tile)):
            rows, cols = int(mask[number, :, 0].sum()), int(mask[number, 0].sum())
            found.append(pixels[number][:, : rows * patch, : cols * patch])
        found.append(pixels[0])
    return found
