"""GLM-4.1V and GLM-4.6V-Flash: a table of 5 x 5 positions, a merger with a gated MLP, RoPE over pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import transformers
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil

from tiny import tokenizer as tokenizers
from tiny.common import padded, randomize, without_videos, write_json, write_processor, write_tensors, write_tokenizer

Layout = Literal["hub", "saved", "memory"]
KINDS = {"glm4v": "Glm4v", "glm46v": "Glm46V", "glm_ocr": "GlmOcr"}
# The image processors of each kind: GLM-OCR's files name GLM-4.6V's.
IMAGES: dict[str, Any] = {
    "glm4v": Glm4vImageProcessorPil, "glm46v": Glm46VImageProcessorPil, "glm_ocr": Glm46VImageProcessorPil,
}  # fmt: skip
SPECIALS = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>",
    "<|video|>", "<think>", "</think>", "<|begin_of_box|>", "<|end_of_box|>",
)  # fmt: skip
PATTERN = tokenizers.QWEN_PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|")
# Two frames of a still picture are counted: 4 to 40 image tokens.
LEAST, MOST = 2 * 4 * 16 * 16, 2 * 40 * 16 * 16
VIDEO = {"shortest_edge": 60_000, "longest_edge": 1_200_000}  # of all frames
# What both templates write, in few words; the newer one strips an answer and puts an empty thought before it.
USER = (
    "<|user|>\n{% if m.content is string %}{{ m.content }}{% else %}{% for item in m.content %}"
    "{% if item.type == 'image' or 'image' in item %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% elif item.type == 'video' or 'video' in item %}<|begin_of_video|><|video|><|end_of_video|>"
    "{% elif item.type == 'text' %}{{ item.text }}{% endif %}{% endfor %}{% endif %}"
)
TEXTS = (
    "{% macro texts(content) %}{% if content is string %}{{ content }}{% else %}{% for item in content %}"
    "{% if item.type == 'text' %}{{ item.text }}{% endif %}{% endfor %}{% endif %}{% endmacro %}"
)
OLDER = (
    "[gMASK]<sop>" + TEXTS + "{% for m in messages %}{% if m.role == 'system' %}<|system|>\n{{ texts(m.content) }}"
    "{% elif m.role == 'user' %}" + USER + "{% elif m.role == 'assistant' %}<|assistant|>\n{{ texts(m.content) }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
NEWER = (
    "[gMASK]<sop>" + TEXTS + "{% set off = enable_thinking is defined and not enable_thinking %}{% for m in messages %}"
    "{% if m.role == 'system' %}<|system|>\n{{ texts(m.content) }}"
    "{% elif m.role == 'user' %}" + USER + "{{ '/nothink' if off else '' }}"
    "{% elif m.role == 'assistant' %}<|assistant|>\n<think></think>\n{{ texts(m.content).strip() }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{{ '<think></think>\n' if off else '' }}"
    "{% endif %}"
)
TEMPLATES = {"glm4v": OLDER, "glm46v": NEWER, "glm_ocr": NEWER}


def build(folder: Path, *, seed: int = 0, kind: str = "glm4v", layout: Layout = "hub", tie: bool = False) -> Any:
    """Write a tiny model of one of KINDS into `folder`; returns it in float32.

    layout: "hub": configs of 2025, with rope_scaling and what the classes leave aside; "saved": what transformers 5
    saves; "memory": its config with the names of `state_dict`, which are the others' too.
    """
    tokenizer = glm_tokenizer()
    ids = tokenizers.added_ids(tokenizer)
    small = kind == "glm_ocr"
    text = {
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4 if small else 3,
        "num_key_value_heads": 2 if small else 1,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "vocab_size": padded(tokenizer.get_vocab_size()),
        "pad_token_id": ids["<|endoftext|>"],
        "eos_token_id": [ids["<|endoftext|>"], ids["<|user|>"], ids["<|observation|>"]],
    } | ({"head_dim": 32} if small else {})
    rope = {"mrope_section": [4, 6, 6] if small else [2, 3, 3], "rope_type": "default"}
    share = 1.0 if small else 0.5
    vision = {
        "depth": 3,
        "hidden_act": "silu",
        "hidden_size": 64,
        "in_channels": 3,
        "image_size": 40,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": 96,
        "patch_size": 8,
        "rms_norm_eps": 1e-5,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    places = {
        f"{name}_token_id": ids[token]
        for name, token in {
            "image": "<|image|>", "video": "<|video|>", "image_start": "<|begin_of_image|>",
            "image_end": "<|end_of_image|>", "video_start": "<|begin_of_video|>", "video_end": "<|end_of_video|>",
        }.items()
    }  # fmt: skip
    parameters = rope | {"rope_theta": 10000.0, "partial_rotary_factor": share}
    config = getattr(transformers, f"{KINDS[kind]}Config")(
        text_config=text | {"rope_parameters": parameters}, vision_config=dict(vision), tie_word_embeddings=tie,
        **places,
    )  # fmt: skip
    model = getattr(transformers, f"{KINDS[kind]}ForConditionalGeneration")(config).eval()
    randomize(model, seed, list(ids.values()))
    model.generation_config = GenerationConfig(pad_token_id=ids["<|endoftext|>"], eos_token_id=text["eos_token_id"])
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "saved":
        model.save_pretrained(folder)
    else:
        write_tensors(folder, model)
        config.architectures = [f"{KINDS[kind]}ForConditionalGeneration"]
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    if layout == "hub":
        old = {"rope_scaling": rope, "rope_theta": 10000.0, "partial_rotary_factor": share, "attention_bias": True}
        part = "glm_ocr" if small else "glm4v"
        parts = {
            "text_config": text | old | {"model_type": f"{part}_text", "tie_word_embeddings": tie},
            "vision_config": vision | {"model_type": f"{part}_vision", "attention_bias": small},
        }
        write_json(folder / "config.json", {"architectures": config.architectures, "model_type": kind} | places | parts)
    _write_processor(folder, tokenizer, layout, kind)
    return model


def glm_tokenizer() -> Tokenizer:
    """GLM-4's: Llama 3's pre-tokenizer with plain merges."""
    splits = [
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return tokenizers.byte_level((), SPECIALS, splits)


def load_processor(folder: Path, kind: str = "glm4v") -> Any:
    """transformers' processor with the Pillow image processor, and no videos."""
    name = "Glm4vProcessor" if kind == "glm4v" else "Glm46VProcessor"
    return without_videos(
        getattr(transformers, name),
        image_processor=IMAGES[kind].from_pretrained(folder),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder),
        chat_template=TEMPLATES[kind],
    )


def _write_processor(folder: Path, tokenizer: Tokenizer, layout: Layout, kind: str) -> None:
    template, images = TEMPLATES[kind], IMAGES[kind]
    write_tokenizer(
        folder,
        tokenizer,
        kind="PreTrainedTokenizerFast",
        published=layout == "hub",
        template=template,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    settings: dict[str, Any] = {"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2}
    settings["size"] = {"shortest_edge": LEAST, "longest_edge": MOST}
    name = "Glm4vProcessor" if kind == "glm4v" else "Glm46VProcessor"
    if layout == "hub":
        more = {"image_processor_type": images.__name__.removesuffix("Pil"), "processor_class": name}
        more |= {"image_mean": images.image_mean, "image_std": images.image_std}
        write_json(folder / "preprocessor_config.json", settings | more)
        if kind != "glm_ocr":
            of_videos = {"video_processor_type": f"{KINDS[kind]}VideoProcessor", "size": VIDEO}
            del more["image_processor_type"]
            write_json(folder / "video_preprocessor_config.json", settings | more | of_videos)
        (folder / "chat_template.jinja").write_text(template, "utf-8")
    else:
        write_processor(folder, name, images(**settings), template)
