"""MiniCPM-V 4.6: neighbours joined behind the second of three layers, a table of 70 x 70 positions, slices."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest import mock

import numpy as np
from transformers import (
    GenerationConfig,
    MiniCPMV4_6Config,
    MiniCPMV4_6ForConditionalGeneration,
    MiniCPMV4_6Processor,
    MiniCPMV4_7Config,
    MiniCPMV4_7ForConditionalGeneration,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

from tiny import qwen3_5
from tiny import tokenizer as tokenizers
from tiny.common import F32, padded, randomize, write_json, write_processor, write_tensors, write_tokenizer

Layout = Literal["hub", "saved", "memory"]
PATCH, SIDE = 8, 48
TOKENS = {
    "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "image_start_token": "<image>",
    "image_end_token": "</image>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
}  # fmt: skip
KINDS: dict[str, tuple[str, Any, Any]] = {
    "4_6": ("minicpmv4_6", MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration),
    "4_7": ("minicpmv4_7", MiniCPMV4_7Config, MiniCPMV4_7ForConditionalGeneration),
}
# A message's items stand on lines of their own, without white space around all of them; thinking is asked for.
CHAT_TEMPLATE = """{%- macro written(content) -%}
{%- if content is string -%}{{- content -}}{%- else -%}
{%- set ns = namespace(parts=[]) -%}
{%- for item in content -%}
{%- set ns.parts = ns.parts + [{'image': '<|image_pad|>', 'video': '<|video_pad|>'}[item.type]
    if item.type != 'text' else item.text] -%}
{%- endfor -%}{{- ns.parts | join('\\n') -}}{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + written(message.content) | trim + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{{- '<think>\\n' if enable_thinking is defined and enable_thinking else '<think>\\n\\n</think>\\n\\n' -}}
{%- endif -%}
"""


def build(
    folder: Path, *, seed: int = 0, layout: Layout = "hub", tie: bool = True, mode: str = "16x", version: str = "4_6"
) -> Any:
    """Write a tiny MiniCPM-V 4.6 or 4.7 into `folder`; returns its model in float32.

    layout: "hub": a config that leaves out what the class has; "saved": what transformers 5 saves; "memory": its config
    with the names of `state_dict`, a table of 6 x 6 positions and pictures never cut.
    tie: the published models have no lm_head. mode: "4x": neighbours are not joined inside of the tower.
    """
    tokenizer = tokenizers.qwen(
        (*tokenizers.QWEN_SPECIALS, *list(TOKENS.values())[2:], *tokenizers.QWEN_WORDS),
        pattern=tokenizers.QWEN3_5_PATTERN,
    )
    ids = tokenizers.added_ids(tokenizer)
    text = qwen3_5.TEXT | {
        "vocab_size": padded(tokenizer.get_vocab_size()),
        "eos_token_id": ids["<|im_end|>"],
        "rope_parameters": qwen3_5.ROPE,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": PATCH * (6 if layout == "memory" else 70),
        "patch_size": PATCH,
    }
    places = {
        "insert_layer_id": 1,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "tie_word_embeddings": tie,
        "downsample_mode": mode,
    }
    if version == "4_7":
        marked = {
            name: ids[TOKENS[f"{name}_token"]] for name in ("image_start", "image_end", "slice_start", "slice_end")
        }
        marked["newline"] = tokenizer.token_to_id("\u010a")
        places |= {f"{name}_id": number for name, number in marked.items()}
    kind, configs, models = KINDS[version]
    config = configs(text_config=text | {"tie_word_embeddings": tie}, vision_config=dict(vision), **places)
    model = models(config).eval()
    randomize(model, seed, list(ids.values()))
    qwen3_5.settle(model, seed)
    model.generation_config = GenerationConfig(
        pad_token_id=ids["<|endoftext|>"], eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]]
    )
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "saved":
        model.save_pretrained(folder)
    else:
        write_tensors(folder, model)
        config.architectures = [models.__name__]
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    if layout == "hub":
        kinds = {"architectures": config.architectures, "model_type": kind}
        kinds |= {"drop_vision_last_layer": False} if version == "4_6" else {}
        parts = {
            "text_config": text | {"model_type": "qwen3_5_text"},
            "vision_config": vision | {"model_type": f"{kind}_vision"},
        }
        write_json(folder / "config.json", kinds | places | parts)
    _write_processor(folder, tokenizer, layout, mode, f"MiniCPMV{version}Processor")
    return model


def _write_processor(folder: Path, tokenizer: Any, layout: Layout, mode: str, name: str) -> None:
    write_tokenizer(
        folder, tokenizer, kind="Qwen2Tokenizer", published=layout == "hub", template=CHAT_TEMPLATE,
        eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=TOKENS,
    )  # fmt: skip
    settings = {
        "patch_size": PATCH, "scale_resolution": SIDE, "max_slice_nums": 6, "downsample_mode": mode,
        "slice_mode": layout != "memory", "use_image_id": layout != "saved", "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }  # fmt: skip
    if layout == "hub":
        kinds = {"image_processor_type": "MiniCPMV4_6ImageProcessor", "processor_class": name}
        write_json(folder / "preprocessor_config.json", settings | kinds)
    else:
        write_processor(folder, name, MiniCPMV4_6ImageProcessorPil(**settings), CHAT_TEMPLATE)


def load_processor(folder: Path, kind: Any = MiniCPMV4_6Processor, videos: Any = None) -> Any:
    """transformers' processor with the Pillow image processor. videos: a video processor's class; without one, what is
    asked of it is told."""
    images = MiniCPMV4_6ImageProcessorPil.from_pretrained(folder)
    told = SimpleNamespace(slice_mode=False, downsample_mode=images.downsample_mode)
    with mock.patch.object(ProcessorMixin, "check_argument_for_proper_class"):
        return kind(
            image_processor=images,
            video_processor=videos.from_pretrained(folder) if videos else told,
            tokenizer=PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=TOKENS),
            chat_template=CHAT_TEMPLATE,
        )


def views(inputs: dict[str, Any]) -> list[F32]:
    """Patches row by row, (3, 8, all of them * 8), back to pictures."""
    found, start = [], 0
    for rows, cols in np.asarray(inputs["target_sizes"]).tolist():
        count = rows * cols * PATCH
        patches = inputs["pixel_values"][0, :, :, start : start + count].reshape(3, PATCH, rows, cols, PATCH)
        found.append(patches.transpose(0, 2, 1, 3, 4).reshape(3, rows * PATCH, cols * PATCH))
        start += count
    return found
