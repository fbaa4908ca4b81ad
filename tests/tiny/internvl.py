"""InternVL 3 (Qwen2 decoder) and 3.5 (Qwen3), in transformers' layout and in that of OpenGVLab's own code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    GenerationConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from tiny import tokenizer as tokenizers
from tiny.common import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    padded,
    randomize,
    renamed,
    without_videos,
    write_json,
    write_processor,
    write_safetensors,
    write_tensors,
    write_tokenizer,
)

Layout = Literal["hub", "saved", "memory", "remote"]
TILE, MAX_TILES, TOKENS = 48, 6, 9  # pixels of a tile, tiles without the thumbnail, image tokens of a tile
ADDED = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>", "<video>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}{% elif content['type'] == 'text' %}"
    "{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
# What the remote code puts first for the template "internvl2_5"; pass it to common.ask as `system`.
REMOTE_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
TEXT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}"
    "}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build(folder: Path, *, seed: int = 0, layout: Layout = "hub", decoder: Literal["qwen2", "qwen3"] = "qwen2") -> Any:
    """Write a tiny InternVL into `folder`; returns its model in float32, the same for each layout.

    layout: "hub": `vision_tower.*`, `multi_modal_projector.*`, `language_model.model.*`, `language_model.lm_head.*` and
    transformers 4's config; "saved": what transformers 5 saves; "memory": `model.*` and `lm_head.*`; "remote":
    `vision_model.*` with fused qkv, `mlp1.*`, `language_model.*` and the config of `internvl_chat`.
    decoder: "qwen2" has biases and the dynamic RoPE scaling of InternVL3's config, which changes nothing within
    max_position_embeddings; "qwen3" has q and k norms and heads whose sizes do not add up to the width.
    """
    tokenizer = tokenizers.qwen((*tokenizers.QWEN_SPECIALS, *tokenizers.QWEN_WORDS, *ADDED))
    ids = tokenizers.added_ids(tokenizer)
    text = {
        "model_type": decoder,
        "hidden_act": "silu",
        "hidden_size": 128 if decoder == "qwen2" else 96,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "max_window_layers": 2,
        "rms_norm_eps": 1e-6,
        "sliding_window": None,
        "use_sliding_window": False,
        "vocab_size": padded(tokenizer.get_vocab_size()),
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "tie_word_embeddings": False,
    }
    if decoder == "qwen3":
        text |= {"head_dim": 32, "attention_bias": False}
    scaling = {"rope_type": "dynamic", "factor": 2.0} if decoder == "qwen2" else None
    vision = {
        "hidden_act": "gelu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "layer_norm_eps": 1e-6,
        "norm_type": "layer_norm",
        "num_attention_heads": 2,
        "num_channels": 3,
        "num_hidden_layers": 2,
    }
    sizes = {"image_size": [TILE, TILE], "patch_size": [8, 8], "attention_bias": True, "layer_scale_init_value": 0.1}
    places = {"image_token_id": ids["<IMG_CONTEXT>"], "image_seq_length": TOKENS, "downsample_ratio": 0.5}
    rope = (scaling or {"rope_type": "default"}) | {"rope_theta": 1e6}
    config = InternVLConfig(
        text_config=text | {"rope_parameters": rope},
        vision_config=vision | sizes,
        tie_word_embeddings=False,
        **places,
    )
    model = InternVLForConditionalGeneration(config).eval()
    randomize(model, seed, list(ids.values()))
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
    )
    folder.mkdir(parents=True, exist_ok=True)
    flat = {"rope_theta": 1e6, "rope_scaling": scaling, "torch_dtype": "float32", "use_cache": True}
    if layout == "saved":
        model.save_pretrained(folder)
    elif layout == "remote":
        _write_remote(folder, model, text | flat, vision)
    else:
        hub = renamed(
            (r"lm_head\.", "language_model.lm_head."),
            (r"model\.language_model\.", "language_model.model."),
            (r"model\.", ""),
        )
        write_tensors(folder, model, hub if layout == "hub" else lambda name: name)
        config.architectures = ["InternVLForConditionalGeneration"]
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    if layout == "hub":
        published = {
            "architectures": config.architectures,
            "model_type": "internvl",
            "projector_hidden_act": "gelu",
            "text_config": text | flat,
            "vision_config": vision | sizes | {"model_type": "internvl_vision", "use_mean_pooling": True},
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
            "torch_dtype": "float32",
        }
        write_json(folder / "config.json", published | places)
    _write_processor(folder, tokenizer, layout)
    return model


def load_processor(folder: Path) -> Any:
    """transformers' processor with the Pillow image processor, and no videos, for every layout."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=_NAMED)
    return without_videos(
        InternVLProcessor,
        image_processor=GotOcr2ImageProcessorPil(**_settings()),
        tokenizer=tokenizer,
        image_seq_length=TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


_NAMED = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def _settings() -> dict[str, Any]:
    size = {"height": TILE, "width": TILE}
    limits = {"min_patches": 1, "max_patches": MAX_TILES}
    return {"size": size, **limits, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}


def _write_processor(folder: Path, tokenizer: Any, layout: Layout) -> None:
    remote = layout == "remote"
    write_tokenizer(
        folder,
        tokenizer,
        kind="Qwen2Tokenizer",
        published=layout in ("hub", "remote"),
        template=TEXT_TEMPLATE if remote else CHAT_TEMPLATE,
        eos_token="<|im_end|>" if not remote else "<|endoftext|>",
        pad_token="<|endoftext|>",
        **({"additional_special_tokens": list(ADDED[:-1])} if remote else {"extra_special_tokens": _NAMED}),
    )
    usual = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3}
    if layout == "hub":
        kind = {"image_processor_type": "GotOcr2ImageProcessorFast", "processor_class": "InternVLProcessor"}
        more = {"crop_to_patches": False, "rescale_factor": 1 / 255}
        write_json(folder / "preprocessor_config.json", _settings() | usual | kind | more)
        processor = {"image_seq_length": TOKENS, "processor_class": "InternVLProcessor"}
        write_json(folder / "processor_config.json", processor)
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    elif remote:
        stale = {  # it says crop, but the remote code tiles
            "crop_size": TILE,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": IMAGENET_MEAN,
            "image_std": IMAGENET_STD,
            "resample": 3,
            "size": TILE,
        }
        write_json(folder / "preprocessor_config.json", stale)
    else:
        images = GotOcr2ImageProcessorPil(**_settings())
        write_processor(folder, "InternVLProcessor", images, CHAT_TEMPLATE, image_seq_length=TOKENS)


def _write_remote(folder: Path, model: Any, text: dict[str, Any], vision: dict[str, Any]) -> None:
    """`internvl_chat`: the same weights as OpenGVLab's modeling_internvl_chat.py names them."""
    rules = {
        r"^model\.vision_tower\.": "vision_model.",
        r"^model\.multi_modal_projector\.layer_norm": "mlp1.0",
        r"^model\.multi_modal_projector\.linear_1": "mlp1.1",
        r"^model\.multi_modal_projector\.linear_2": "mlp1.3",
        r"^model\.language_model\.": "language_model.model.",
        r"^lm_head": "language_model.lm_head",
        r"encoder\.layer\.": "encoder.layers.",
        r"embeddings\.cls_token": "embeddings.class_embedding",
        r"embeddings\.position_embeddings": "embeddings.position_embedding",
        r"patch_embeddings\.projection": "patch_embedding",
        r"lambda_": "ls",
        r"attention\.projection_layer": "attn.proj",
        r"layernorm_before": "norm1",
        r"layernorm_after": "norm2",
    }
    state = model.state_dict()
    tensors = {}
    for name, tensor in state.items():
        if fused := re.match(r"(.*)\.attention\.q_proj\.(weight|bias)$", name):
            parts = [state[f"{fused[1]}.attention.{part}_proj.{fused[2]}"] for part in "qkv"]
            name, tensor = f"{fused[1]}.attn.qkv.{fused[2]}", torch.cat(parts)
        elif re.search(r"\.attention\.[kv]_proj\.", name):
            continue
        for pattern, replacement in rules.items():
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor.contiguous().clone()
    write_safetensors(folder, tensors)
    decoder = "Qwen2ForCausalLM" if text["model_type"] == "qwen2" else "Qwen3ForCausalLM"
    config = {
        "architectures": ["InternVLChatModel"],
        "auto_map": {
            "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": "modeling_internvl_chat.InternVLChatModel",
            "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
        },
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": TILE,
        "llm_config": text | {"architectures": [decoder]},
        "max_dynamic_patch": MAX_TILES,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "system_message": None,
        "template": "internvl2_5",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": vision
        | {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "image_size": TILE,
            "patch_size": 8,
            "qkv_bias": True,
            "qk_normalization": False,
            "drop_path_rate": 0.0,
        },
    }
    write_json(folder / "config.json", config)
    ends = [*model.generation_config.eos_token_id]
    write_json(folder / "generation_config.json", {"_from_model_config": True, "eos_token_id": ends})
