"""Tiny models of transformers' three linked parts: LLaVA-NeXT, LLaVA-OneVision, VipLLaVA and Granite Vision 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from transformers import (
    GenerationConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from tiny import tokenizer as tokenizers
from tiny.common import (
    CLIP_MEAN,
    CLIP_STD,
    padded,
    randomize,
    renamed,
    without_videos,
    write_json,
    write_processor,
    write_tensors,
    write_tokenizer,
)
from tiny.llava15 import CHAT_TEMPLATE as VICUNA

Layout = Literal["hub", "saved", "memory"]
SIDE, PATCH = 48, 8  # pixels of a view, of a patch
MISTRAL = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ '<<SYS>>\n' + message['content'][0]['text'] + "
    "'\n<</SYS>>\n\n' }}{% elif message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{ ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '</s> ' }}"
    "{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
    "{% endfor %}{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GRIDS = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
KINDS: dict[str, tuple[Any, Any, Any, Any]] = {
    "llava_next": (LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor, LlavaNextImageProcessorPil),
    "llava_onevision": (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionProcessor,
        LlavaOnevisionImageProcessorPil,
    ),
    "vipllava": (VipLlavaConfig, VipLlavaForConditionalGeneration, LlavaProcessor, CLIPImageProcessorPil),
}
Text = Literal["mistral", "llama", "qwen2", "granite"]


def build(
    folder: Path,
    *,
    kind: str = "llava_next",
    layout: Layout = "hub",
    text: Text = "mistral",
    tower: Literal["clip", "siglip"] = "clip",
    layers: int | list[int] = -2,
    most: int = 2,
    tie: bool = False,
    seed: int = 0,
) -> Any:
    """Write a tiny model into `folder`; returns it in float32.

    layout: "hub": `vision_tower.vision_model.*`, `multi_modal_projector.*`, `image_newline`, `language_model.model.*`,
    `language_model.lm_head.*`, as transformers 4 wrote; "saved": what transformers 5 saves; "memory": `model.*` and
    `lm_head.*`. layers: vision_feature_layer. most: LLaVA-OneVision's anyres_max.
    """
    byte_level = text in ("qwen2", "granite")
    added = ("<image>", "<video>") if byte_level else ("<image>", "<pad>")
    tokenizer = tokenizers.qwen((*tokenizers.QWEN_SPECIALS, *added)) if byte_level else tokenizers.llama(added)
    ids = tokenizers.added_ids(tokenizer)
    parts = {
        "text_config": _text(text, padded(tokenizer.get_vocab_size())) | {"tie_word_embeddings": tie},
        "vision_config": _vision(tower),
    }
    settings = {
        "image_token_index": ids["<image>"],
        "projector_hidden_act": "gelu",
        "vision_feature_layer": layers,
        "tie_word_embeddings": tie,
    }
    if kind != "vipllava":
        settings["vision_feature_select_strategy"] = "default" if tower == "clip" else "full"
        settings["image_grid_pinpoints"] = [[rows * SIDE, cols * SIDE] for rows, cols in GRIDS]
    if kind == "llava_onevision":
        settings |= {"video_token_index": ids["<video>"], "vision_aspect_ratio": f"anyres_max_{most}"}
    config_class, model_class, _, _ = KINDS[kind]
    config = config_class(**{key: dict(value) for key, value in parts.items()}, **settings)
    model = model_class(config).eval()
    randomize(model, seed, list(ids.values()))
    if kind != "vipllava":
        _newline(model, seed)
    if byte_level:
        ends = {"bos_token_id": None, "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
    else:
        ends = {"bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"], "pad_token_id": ids["<pad>"]}
    model.generation_config = GenerationConfig(**ends)
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "saved":
        model.save_pretrained(folder)
    else:
        hub = renamed(
            (r"model\.vision_tower\.", "vision_tower.vision_model."),
            (r"lm_head\.", "language_model.lm_head."),
            (r"model\.language_model\.", "language_model.model."),
            (r"model\.", ""),
        )
        write_tensors(folder, model, hub if layout == "hub" else lambda name: name)
        config.architectures = [model_class.__name__]
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    if layout == "hub":
        published = {"architectures": [model_class.__name__], "model_type": kind, "torch_dtype": "float32"}
        write_json(folder / "config.json", published | parts | settings)
    _write_processor(folder, kind, text, tower, tokenizer, layout, most)
    return model


def _newline(model: Any, seed: int) -> None:
    """A newline as large as features are, so that a missing one shows."""
    import torch

    noise = torch.randn(model.model.image_newline.shape, generator=torch.Generator().manual_seed(seed + 1))
    model.model.image_newline.data.copy_(noise)


def _text(kind: Text, vocabulary: int) -> dict[str, Any]:
    own: dict[str, Any] = {
        "mistral": {"sliding_window": None, "head_dim": 32},
        "llama": {},
        "qwen2": {"use_sliding_window": False},
        "granite": {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.125,
            "logits_scaling": 2.5,
        },
    }[kind]
    return own | {
        "model_type": kind,
        "hidden_size": 128,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "vocab_size": vocabulary,
    }


def _vision(kind: str) -> dict[str, Any]:
    own = {"clip": {"projection_dim": 32, "vocab_size": 32000}, "siglip": {"vision_use_head": False}}[kind]
    return own | {
        "model_type": f"{kind}_vision_model",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    }


def _template(text: Text) -> str:
    return {"mistral": MISTRAL, "llama": VICUNA, "qwen2": CHATML, "granite": CHATML}[text]


def _images(kind: str) -> dict[str, Any]:
    square = {"height": SIDE, "width": SIDE}
    if kind == "llava_onevision":
        sizes: dict[str, Any] = {"size": square}
    else:
        sizes = {"size": {"shortest_edge": SIDE}, "crop_size": square}
    if kind != "vipllava":
        sizes["image_grid_pinpoints"] = [[rows * SIDE, cols * SIDE] for rows, cols in GRIDS]
    return sizes | {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": 3}


def _lengths(kind: str, tower: str, most: int) -> dict[str, Any]:
    strategy = "default" if tower == "clip" else "full"
    common = {"image_token": "<image>", "vision_feature_select_strategy": strategy}
    if kind == "llava_onevision":
        count = (SIDE // PATCH) ** 2
        return common | {"num_image_tokens": count, "vision_aspect_ratio": f"anyres_max_{most}"}
    return common | {"patch_size": PATCH, "num_additional_image_tokens": int(tower == "clip")}


def load_processor(
    folder: Path, *, kind: str = "llava_next", text: Text = "mistral", tower: str = "clip", most: int = 2
) -> Any:
    """transformers' processor with a Pillow image processor. OneVision's gets all pictures as those of one prompt."""
    _, _, processor, images = KINDS[kind]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    made = {
        "image_processor": images(**_images(kind)),
        "tokenizer": tokenizer,
        "chat_template": _template(text),
        **_lengths(kind, tower, most),
    }
    return without_videos(_OnePrompt, **made) if kind == "llava_onevision" else processor(**made)


class _OnePrompt(LlavaOnevisionProcessor):
    """Pictures nested by prompt, as apply_chat_template(tokenize=True) passes them."""

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
        return super().__call__(images=[images] if images else None, text=text, **options)


def _write_processor(
    folder: Path, kind: str, text: Text, tower: str, tokenizer: Any, layout: Layout, most: int
) -> None:
    published, template = layout == "hub", _template(text)
    _, _, processor, images = KINDS[kind]
    byte_level = text in ("qwen2", "granite")
    tokens = (
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        if byte_level
        else {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    )
    more = {"add_bos_token": True, "add_eos_token": False, "legacy": False} if published and not byte_level else {}
    write_tokenizer(
        folder, tokenizer, kind="Qwen2Tokenizer" if byte_level else "LlamaTokenizer", published=published,
        template=None, **tokens, **more,
    )  # fmt: skip
    name = processor.__name__
    if published:
        usual = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True}
        said = {"image_processor_type": images.__name__.removesuffix("Pil"), "processor_class": name}
        write_json(folder / "preprocessor_config.json", _images(kind) | usual | said | {"rescale_factor": 1 / 255})
        write_json(folder / "processor_config.json", {"processor_class": name, **_lengths(kind, tower, most)})
        write_json(folder / "chat_template.json", {"chat_template": template})
    else:
        write_processor(folder, name, images(**_images(kind)), template, **_lengths(kind, tower, most))
