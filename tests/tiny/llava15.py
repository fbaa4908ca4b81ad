"""LLaVA-1.5: CLIP's last layer but one without its class token, two linears, a Llama with SentencePiece's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from tiny import tokenizer as tokenizers
from tiny.common import (
    CLIP_MEAN,
    CLIP_STD,
    padded,
    randomize,
    renamed,
    write_json,
    write_processor,
    write_tensors,
    write_tokenizer,
)

Layout = Literal["hub", "saved", "memory"]
SIZE, PATCH, TOKENS = 48, 8, 36  # pixels of the square, of a patch, image tokens
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build(
    folder: Path,
    *,
    seed: int = 0,
    layout: Layout = "hub",
    form: Literal["prepend", "metaspace"] = "prepend",
    pad: bool = False,
) -> Any:
    """Write a tiny LLaVA-1.5 into `folder`; returns its model in float32.

    layout: "hub": `vision_tower.vision_model.*`, `multi_modal_projector.*`, `language_model.model.*`,
    `language_model.lm_head.*`, as transformers 4 wrote; "saved": what transformers 5 saves, without `vision_model`;
    "memory": `model.*` and `lm_head.*`. form: see tokenizer.llama.
    pad: pad to a square of the mean colour, then resize (LlavaImageProcessor); otherwise resize the short side and crop
    the middle (CLIPImageProcessor).
    """
    tokenizer = tokenizers.llama(("<image>", "<pad>"), form=form)
    ids = tokenizers.added_ids(tokenizer)
    text = {
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "vocab_size": padded(tokenizer.get_vocab_size()),
        "tie_word_embeddings": False,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": PATCH,
        "projection_dim": 32,
        "vocab_size": 32000,
    }
    places = {
        "image_token_index": ids["<image>"],
        "image_seq_length": TOKENS,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    config = LlavaConfig(text_config=dict(text), vision_config=dict(vision), **places)
    model = LlavaForConditionalGeneration(config).eval()
    randomize(model, seed, list(ids.values()))
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
        config.architectures = ["LlavaForConditionalGeneration"]
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    if layout == "hub":
        published = {
            "architectures": config.architectures,
            "ignore_index": -100,
            "model_type": "llava",
            "pad_token_id": ids["<pad>"],
            "text_config": {key: value for key, value in text.items() if key != "tie_word_embeddings"},
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "vision_config": vision,
        }
        write_json(folder / "config.json", published | places)
    _write_processor(folder, tokenizer, layout, pad)
    return model


def load_processor(folder: Path) -> Any:
    """transformers' processor with a Pillow image processor: the one that pads, or CLIP's."""
    files = (folder / name for name in ("preprocessor_config.json", "processor_config.json"))
    pads = any('"do_pad": true' in file.read_text() for file in files if file.exists())
    images = (LlavaImageProcessorPil if pads else CLIPImageProcessorPil)(**_settings(pads))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return LlavaProcessor(images, tokenizer, chat_template=CHAT_TEMPLATE, **_LENGTH)


_LENGTH = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}


def _settings(pad: bool) -> dict[str, Any]:
    size: dict[str, int] = {"height": SIZE, "width": SIZE} if pad else {"shortest_edge": SIZE}
    crop = {"crop_size": {"height": SIZE, "width": SIZE}, "do_center_crop": not pad}
    return {"size": size, **crop, "image_mean": CLIP_MEAN, "image_std": CLIP_STD} | ({"do_pad": True} if pad else {})


def _write_processor(folder: Path, tokenizer: Any, layout: Layout, pad: bool) -> None:
    published = layout == "hub"
    write_tokenizer(
        folder,
        tokenizer,
        kind="LlamaTokenizer",
        published=published,
        template=None,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        **({"add_bos_token": True, "add_eos_token": False, "legacy": False} if published else {}),
    )
    kind = LlavaImageProcessorPil if pad else CLIPImageProcessorPil
    if published:
        usual = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3}
        name = {"image_processor_type": kind.__name__.removesuffix("Pil"), "processor_class": "LlavaProcessor"}
        write_json(folder / "preprocessor_config.json", _settings(pad) | usual | name | {"rescale_factor": 1 / 255})
        processor = {"image_token": "<image>", "processor_class": "LlavaProcessor", **_LENGTH}
        write_json(folder / "processor_config.json", processor)
        write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    else:
        images = kind(**_settings(pad))
        write_processor(folder, "LlavaProcessor", images, CHAT_TEMPLATE, image_token="<image>", **_LENGTH)
