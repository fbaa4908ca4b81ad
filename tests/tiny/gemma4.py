"""Gemma 4: a tower on any grid with bounded maps, patches averaged 3 x 3, heads of two sizes, layers that share keys
and values, per-layer embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from transformers import (
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4Processor,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from tiny import tokenizer as tokenizers
from tiny.common import (
    padded,
    randomize,
    without_videos,
    write_json,
    write_processor,
    write_safetensors,
    write_tensors,
    write_tokenizer,
)

Layout = Literal["hub", "saved", "memory"]
PATCH, POOL, TOKENS = 4, 3, 70  # pixels of a patch, patches per side of a token, tokens of a picture at most
SPECIALS = (
    "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", "<|image>", "<image|>", "<|image|>", "<|audio>",
    "<audio|>", "<|audio|>", "<|video|>",
)  # fmt: skip
CHAT_TEMPLATE = """{{- bos_token -}}
{%- set think = enable_thinking is defined and enable_thinking -%}
{%- set said = messages -%}
{%- if think or messages[0]['role'] == 'system' -%}
    {{- '<|turn>system\n' -}}
    {%- if think -%}
        {{- '<|think|>\n' -}}
    {%- endif -%}
    {%- if messages[0]['role'] == 'system' -%}
        {%- for item in messages[0]['content'] -%}
            {{- item['text'] | trim + ' ' -}}
        {%- endfor -%}
        {%- set said = messages[1:] -%}
    {%- endif -%}
    {{- '<turn|>\n' -}}
{%- endif -%}
{%- for message in said -%}
    {{- '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' -}}
    {%- for item in message['content'] -%}
        {%- if item['type'] == 'text' -%}
            {{- item['text'] | trim -}}
        {%- elif item['type'] == 'image' -%}
            {{- '<|image|>' -}}
        {%- elif item['type'] == 'video' -%}
            {{- '<|video|>' -}}
        {%- endif -%}
    {%- endfor -%}
    {{- '<turn|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|turn>model\n' -}}
{%- endif -%}
"""
_IMAGES: dict[str, Any] = {
    "do_convert_rgb": True, "do_normalize": False, "do_rescale": True, "do_resize": True, "image_mean": [0.0] * 3,
    "image_seq_length": TOKENS, "image_std": [1.0] * 3, "max_soft_tokens": TOKENS, "patch_size": PATCH,
    "pooling_kernel_size": POOL, "resample": 3, "rescale_factor": 1 / 255,
}  # fmt: skip
_VIDEOS: dict[str, Any] = {key: value for key, value in _IMAGES.items() if key != "image_seq_length"} | {
    "do_normalize": True, "do_sample_frames": True, "num_frames": 6, "return_metadata": False,
    "video_processor_type": "Gemma4VideoProcessor",
}  # fmt: skip
_EXTRA = {
    "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>",
    "boa_token": "<|audio>", "eoa_token": "<audio|>",
}  # fmt: skip
KINDS = ["sliding_attention", "sliding_attention", "full_attention"] * 2


class Processor(Gemma4Processor):
    """As `apply_chat_template(tokenize=True)` calls it: the template has written the bos token already."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return super().__call__(*arguments, add_special_tokens=False, **options)


def build(
    folder: Path,
    *,
    seed: int = 0,
    layout: Layout = "hub",
    unread: bool = True,
    bounds: bool = True,
    dtype: str = "float32",
    **options: Any,
) -> Any:
    """Write a tiny Gemma 4 into `folder`; returns its model in float32.

    layout: "hub": a config as published; "saved": what transformers 5 saves; "memory": its config with the names of
    `state_dict`. unread: hub's files also hold a tensor of sounds, and keys and values that nothing reads. bounds:
    that hold something back; otherwise infinite ones, as a fresh model has them. dtype: of
    the files, "bfloat16" as published. options: of text_config.
    """
    tokenizer = tokenizers.gemma(SPECIALS)
    ids = tokenizers.added_ids(tokenizer)
    vocab = padded(tokenizer.get_vocab_size())
    text: dict[str, Any] = {
        "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "global_head_dim": 64, "vocab_size": vocab,
        "vocab_size_per_layer_input": vocab, "hidden_size_per_layer_input": 64, "max_position_embeddings": 1024,
        "sliding_window": 8, "layer_types": KINDS, "num_kv_shared_layers": 3, "use_double_wide_mlp": True,
        "final_logit_softcapping": 12.0, "pad_token_id": 0, "model_type": "gemma4_text", **options,
    }  # fmt: skip
    vision = {
        "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 32, "patch_size": PATCH, "pooling_kernel_size": POOL,
        "position_embedding_size": 256, "use_clipped_linears": True, "model_type": "gemma4_vision",
    }  # fmt: skip
    places = {
        "image_token_id": ids["<|image|>"], "boi_token_id": ids["<|image>"], "eoi_token_id": ids["<image|>"],
        "audio_token_id": ids["<|audio|>"], "boa_token_id": ids["<|audio>"], "eoa_token_index": ids["<audio|>"],
        "video_token_id": ids["<|video|>"],
    }  # fmt: skip
    config = Gemma4Config(text_config=dict(text), vision_config=dict(vision), audio_config=None, **places)
    torch.manual_seed(seed)
    model = Gemma4ForConditionalGeneration(config).eval()
    randomize(model, seed, list(ids.values()))
    _settle(model, seed, bounds)
    model.to(getattr(torch, dtype)).float()
    ends = {"bos_token_id": ids["<bos>"], "eos_token_id": [ids["<eos>"], ids["<turn|>"]], "pad_token_id": 0}
    model.generation_config = GenerationConfig(**ends)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype))
    if layout == "saved":
        model.save_pretrained(folder)
    else:
        write_tensors(folder, model)
        config.architectures = ["Gemma4ForConditionalGeneration"]
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    if layout == "hub":
        layer = "model.language_model.layers.5.self_attn"
        more = {f"{layer}.{part}_proj.weight": torch.ones(128, 96) for part in "kv"}
        more |= {f"{layer}.k_norm.weight": torch.ones(64), "model.audio_tower.output_proj.weight": torch.ones(8, 8)}
        more |= {"model.embed_audio.embedding_projection.weight": torch.ones(96, 8)}
        write_safetensors(folder, load_file(folder / "model.safetensors") | (more if unread else {}))
        kind = {"architectures": config.architectures, "model_type": "gemma4", "dtype": dtype, "audio_config": {}}
        parts = {"text_config": text | {"dtype": dtype}, "vision_config": vision, "tie_word_embeddings": True}
        write_json(folder / "config.json", kind | places | parts | {"eos_token_id": ends["eos_token_id"]})
    model.float()
    _write_processor(folder, tokenizer, layout)
    return model


@torch.no_grad()
def _settle(model: Any, seed: int, bounds: bool) -> None:
    """What `randomize` cannot know: scores that are not scaled, bounds that some values reach, layers' numbers."""
    random = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            parameter.copy_(0.45 + 0.08 * torch.randn(parameter.shape, generator=random))
        elif "language_model" in name and "post_" in name:
            parameter.mul_(2)  # or a tied decoder would repeat what it reads
    for name, buffer in model.named_buffers():
        sign = -1 if name.endswith("_min") else 1
        if bounds and name.endswith(("input_min", "input_max", "output_min", "output_max")):
            buffer.fill_(sign * float(1.2 + 0.8 * torch.rand((), generator=random)))
        elif name.endswith("layer_scalar"):
            buffer.fill_(float(0.6 + 0.3 * torch.rand((), generator=random)))


def load_processor(folder: Path) -> Any:
    """transformers' processor with the Pillow image processor, and neither videos nor sounds."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=_EXTRA)
    images = Gemma4ImageProcessorPil(**_IMAGES)
    return without_videos(
        Processor, feature_extractor=None, image_processor=images, tokenizer=tokenizer, chat_template=CHAT_TEMPLATE,
        image_seq_length=TOKENS,
    )  # fmt: skip


def _write_processor(folder: Path, tokenizer: Any, layout: Layout) -> None:
    published = layout == "hub"
    write_tokenizer(
        folder,
        tokenizer,
        kind="GemmaTokenizer",
        published=published,
        template=None,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        **({"extra_special_tokens": _EXTRA, **_EXTRA} if published else {}),
    )
    if published:
        nested = _IMAGES | {"image_processor_type": "Gemma4ImageProcessor"}
        sizes = {"image_seq_length": TOKENS, "audio_seq_length": 750, "audio_ms_per_token": 40}
        parts = {"image_processor": nested, "video_processor": _VIDEOS, "processor_class": "Gemma4Processor"}
        write_json(folder / "processor_config.json", parts | sizes)
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    else:
        images = Gemma4ImageProcessorPil(**_IMAGES)
        write_processor(folder, "Gemma4Processor", images, CHAT_TEMPLATE, image_seq_length=TOKENS)
