"""Granite-Docling of 2026: two levels of features, fixed positions, all four of Granite's multipliers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from transformers import (
    GenerationConfig,
    GraniteDoclingConfig,
    GraniteDoclingForConditionalGeneration,
    GraniteDoclingProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.models.granite_docling.image_processing_pil_granite_docling import GraniteDoclingImageProcessorPil

from tiny import tokenizer as tokenizers
from tiny.common import (
    F32,
    padded,
    randomize,
    write_json,
    write_processor,
    write_tensors,
    write_tokenizer,
)

Layout = Literal["hub", "saved", "memory"]
FAKE, END = "<fake_token_around_image>", "<|end_of_text|>"
TILES = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
SPECIALS = (END, "<|pad|>", "<|start_of_role|>", "<|end_of_role|>", "<image>", FAKE, "<global-img>", *TILES)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'text' -%}{{- part['text'] -}}"
    "{%- elif part['type'] == 'image' -%}{{- '<image>' -}}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{- '<|end_of_text|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_of_role|>assistant<|end_of_role|>' -}}{%- endif -%}"
)
SIDE = 64


def build(folder: Path, *, seed: int = 0, layout: Layout = "hub", fine: bool = True) -> Any:
    """Write a tiny Granite-Docling into `folder`; returns its model in float32.

    layout: "hub": a config without what has defaults; "saved" and "memory": transformers 5's, with the names of its
    state_dict, which are all. fine: with the second route and the router that would choose it.
    """
    tokenizer = tokenizers.qwen(SPECIALS)
    ids = tokenizers.added_ids(tokenizer)
    text = {
        "hidden_size": 128,
        "intermediate_size": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "vocab_size": padded(tokenizer.get_vocab_size()),
        "bos_token_id": ids[END],
        "eos_token_id": ids[END],
        "pad_token_id": ids["<|pad|>"],
        "attention_multiplier": 0.3,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
        "out_hidden_size": 128,
        "scale_factor": 4,
        "deepstack_visual_indexes": [0, 1],
        "use_fine_route": fine,
    }
    places = {"image_token_id": ids["<image>"], "density_router_hidden_size": 32 if fine else None}
    config = GraniteDoclingConfig(
        text_config=dict(text), vision_config=dict(vision), pad_token_id=ids["<|pad|>"], **places
    )
    model = GraniteDoclingForConditionalGeneration(config).eval()
    randomize(model, seed, list(ids.values()))
    with torch.no_grad():  # embeddings are multiplied by 12, layers by 0.263, and logits divided by 4
        model.model.text_model.embed_tokens.weight.mul_(0.4)
        model.model.vision_model.connector.ln_out.weight.mul_(0.2)
    model.generation_config = GenerationConfig(
        bos_token_id=ids[END], pad_token_id=ids["<|pad|>"], eos_token_id=ids[END]
    )
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "saved":
        model.save_pretrained(folder)
    else:
        write_tensors(folder, model)
        config.architectures = ["GraniteDoclingForConditionalGeneration"]
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    if layout == "hub":
        parts = {"text_config": text, "vision_config": vision}
        kind = {"architectures": config.architectures, "model_type": "granite_docling", "dtype": "float32"}
        write_json(folder / "config.json", kind | places | parts)
    _write_processor(folder, tokenizer, layout)
    return model


def _write_processor(folder: Path, tokenizer: Any, layout: Layout) -> None:
    tokens = {"bos_token": END, "eos_token": END, "pad_token": "<|pad|>"}
    write_tokenizer(
        folder, tokenizer, kind="GPT2TokenizerFast", published=layout == "hub", template=CHAT_TEMPLATE, **tokens
    )
    settings = {"size": {"height": SIDE, "width": SIDE}, "max_patches": 6}
    settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    if layout != "hub":
        images = GraniteDoclingImageProcessorPil(**settings)
        write_processor(folder, "GraniteDoclingProcessor", images, CHAT_TEMPLATE, image_seq_len=4)
        return
    kind = {"image_processor_type": "GraniteDoclingImageProcessor", "processor_class": "GraniteDoclingProcessor"}
    write_json(folder / "preprocessor_config.json", settings | kind)
    write_json(folder / "processor_config.json", {"processor_class": "GraniteDoclingProcessor", "image_seq_len": 4})
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")


def load_processor(folder: Path) -> Any:
    with mock.patch.object(ProcessorMixin, "check_argument_for_proper_class"):
        return GraniteDoclingProcessor(
            image_processor=GraniteDoclingImageProcessorPil.from_pretrained(folder),
            tokenizer=PreTrainedTokenizerFast.from_pretrained(folder),
            image_seq_len=4,
            chat_template=CHAT_TEMPLATE,
        )


def views(inputs: dict[str, Any]) -> list[F32]:
    return list(inputs["pixel_values"][inputs["pixel_attention_mask"].astype(bool)])
