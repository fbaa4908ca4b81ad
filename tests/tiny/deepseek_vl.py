"""DeepSeek-VL 1.3B: SigLIP with an exact GELU, two linears, a Llama without grouped heads, pictures padded square."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from transformers import (
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    DeepseekVLProcessor,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import DeepseekVLImageProcessorPil

from tiny import tokenizer as tokenizers
from tiny.common import padded, randomize, renamed, write_json, write_processor, write_tensors, write_tokenizer

Layout = Literal["hub", "saved", "memory"]
SIZE, TOKENS = 48, 36  # pixels of the square, image tokens
BOS, EOS, IMAGE = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<image_placeholder>"
CHAT_TEMPLATE = (
    "{% set seps = ['\n\n', '<｜end▁of▁sentence｜>'] %}{% set i = 0 %}You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, and assist the user with a variety of tasks "
    "using natural language.\n\n{% for message in messages %}{% if message['role']|lower == 'user' %}User: "
    "{% elif message['role']|lower == 'assistant' %}Assistant:{% if not (loop.last and not add_generation_prompt and "
    "message['content'][0]['type']=='text' and message['content'][0]['text']=='') %} {% endif %}{% else %}"
    "{{ message['role'].capitalize() }}: {% endif %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<image_placeholder>{% elif content['type'] == 'text' %}"
    "{% set text = content['text'] %}{% if loop.first %}{% set text = text.lstrip() %}{% endif %}{% if loop.last %}"
    "{% set text = text.rstrip() %}{% endif %}"
    "{% if not loop.first and message['content'][loop.index0-1]['type'] == 'text' %}{{ ' ' + text }}{% else %}"
    "{{ text }}{% endif %}{% endif %}{% endfor %}{% if not loop.last or add_generation_prompt %}"
    "{% if message['role']|lower == 'user' %}{{ seps[0] }}{% else %}{{ seps[1] }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def build(folder: Path, *, seed: int = 0, layout: Layout = "hub") -> Any:
    """Write a tiny DeepSeek-VL 1.3B into `folder`; returns its model in float32.

    layout: "hub": `model.vision_model.vision_model.*`, `model.aligner.*`, `model.language_model.*`, `lm_head.*`, as
    transformers 4 wrote; "saved": what transformers 5 saves; "memory": without the second `vision_model`.
    """
    tokenizer = tokenizers.deepseek((BOS, EOS, IMAGE), BOS)
    ids = tokenizers.added_ids(tokenizer)
    text = {
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "vocab_size": padded(tokenizer.get_vocab_size()),
        "tie_word_embeddings": False,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_act": "gelu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": 8,
        "vision_use_head": False,
    }
    config = DeepseekVLConfig(
        text_config=dict(text), vision_config=dict(vision), image_token_id=ids[IMAGE], tie_word_embeddings=False
    )
    model = DeepseekVLForConditionalGeneration(config).eval()
    randomize(model, seed, list(ids.values()))
    model.generation_config = GenerationConfig(bos_token_id=ids[BOS], eos_token_id=ids[EOS], pad_token_id=ids[EOS])
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "saved":
        model.save_pretrained(folder)
    else:
        hub = renamed((r"model\.vision_model\.", "model.vision_model.vision_model."))
        write_tensors(folder, model, hub if layout == "hub" else lambda name: name)
        config.architectures = ["DeepseekVLForConditionalGeneration"]
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    if layout == "hub":
        published = {
            "architectures": config.architectures,
            "image_token_id": ids[IMAGE],
            "model_type": "deepseek_vl",
            "text_config": text | {"head_dim": 32, "rope_theta": 10000.0, "rope_scaling": None, "mlp_bias": False},
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "vision_config": vision | {"layer_norm_eps": 1e-6, "num_channels": 3},
        }
        write_json(folder / "config.json", published)
    write_tokenizer(
        folder,
        tokenizer,
        kind="LlamaTokenizer",
        published=layout == "hub",
        template=None,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        extra_special_tokens={"image_token": IMAGE},
    )
    if layout == "hub":
        kind = {"image_processor_type": "DeepseekVLImageProcessor", "processor_class": "DeepseekVLProcessor"}
        usual = {"do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True, "min_size": 14}
        more = {"resample": 3, "rescale_factor": 1 / 255}
        write_json(folder / "preprocessor_config.json", _settings() | usual | more | kind)
        name = {"num_image_tokens": TOKENS, "processor_class": "DeepseekVLProcessor"}
        write_json(folder / "processor_config.json", name)
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    else:
        images = DeepseekVLImageProcessorPil(**_settings())
        write_processor(folder, "DeepseekVLProcessor", images, CHAT_TEMPLATE, num_image_tokens=TOKENS)
    return model


def load_processor(folder: Path) -> Any:
    """transformers' processor with the Pillow image processor."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens={"image_token": IMAGE})
    images = DeepseekVLImageProcessorPil(**_settings())
    return DeepseekVLProcessor(images, tokenizer, chat_template=CHAT_TEMPLATE, num_image_tokens=TOKENS)


def _settings() -> dict[str, Any]:
    return {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
