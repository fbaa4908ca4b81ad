"""Janus-Pro: SigLIP's layers with an exact GELU, linear maps, a Llama, and parts that draw, which nothing reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from tiny import tokenizer as tokenizers
from tiny.common import padded, randomize, write_json, write_processor, write_tensors, write_tokenizer

Layout = Literal["hub", "saved"]
SIZE, TOKENS = 48, 36  # pixels of the square, image tokens
BOS, EOS, IMAGE = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<image_placeholder>"
START, END = "<begin_of_image>", "<end_of_image>"
TOKEN_NAMES = {"image_token": IMAGE, "boi_token": START, "eoi_token": END}
CHAT_TEMPLATE = (
    "{%set seps=['\n\n','<｜end▁of▁sentence｜>']%}{%set i=0%}{%for message in messages%}"
    "{%if message['role']|lower=='user'%}<|User|>: {%elif message['role']|lower=='assistant'%}<|Assistant|>:{%if not "
    "(loop.last and not add_generation_prompt and message['content'][0]['type']=='text' and "
    "message['content'][0]['text']=='')%} {%endif%}{%else%}{{message['role'].capitalize()}}: {%endif%}"
    "{%for content in message['content']%}{%if content['type']=='image'%}{%if not loop.first%}{{'\n'}}{%endif%}"
    "<image_placeholder>{%if not loop.last%}{{'\n'}}{%endif%}{%elif content['type']=='text'%}"
    "{%set text=content['text']%}{%if loop.first%}{%set text=text.lstrip()%}{%endif%}"
    "{%if loop.last%}{%set text=text.rstrip()%}{%endif%}"
    "{%if not loop.first and message['content'][loop.index0-1]['type']=='text'%}{{' '+text}}{%else%}{{text}}{%endif%}"
    "{%endif%}{%endfor%}{%if not loop.last or add_generation_prompt%}{%if message['role']|lower=='user'%}{{seps[0]}}"
    "{%else%}{{seps[1]}}{%endif%}{%endif%}{%endfor%}{%if add_generation_prompt%}<|Assistant|>:{%endif%}"
)


def build(folder: Path, *, seed: int = 0, layout: Layout = "hub", depth: int = 2) -> Any:
    """Write a tiny Janus into `folder`; returns its model in float32.

    layout: "hub": the conversion's files of transformers 4, whose names are those in memory; "saved": what transformers
    5 saves. depth: linear maps of the projector.
    """
    tokenizer = tokenizers.deepseek((BOS, EOS, IMAGE, START, END), BOS)
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
        "model_type": "janus_vision_model",
        "hidden_size": 64,
        "mlp_ratio": 1.5,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": 8,
        "projection_dim": 128,
        "depth": depth,
        "num_image_tokens": TOKENS,
    }
    drawing = {
        "model_type": "janus_vqgan",
        "num_embeddings": 32,
        "base_channels": 32,
        "latent_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "projection_dim": 128,
        "image_token_embed_dim": 128,
    }
    parts = {"text_config": text, "vision_config": vision, "vq_config": drawing}
    settings = {"image_token_id": ids[IMAGE], "tie_word_embeddings": False}
    config = JanusConfig(**{name: dict(part) for name, part in parts.items()}, **settings)
    model = JanusForConditionalGeneration(config).eval()
    randomize(model, seed, list(ids.values()))
    model.generation_config = GenerationConfig(bos_token_id=ids[BOS], eos_token_id=ids[EOS], pad_token_id=ids[EOS])
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "saved":
        model.save_pretrained(folder)
    else:
        write_tensors(folder, model)
        model.generation_config.save_pretrained(folder)
        published = {
            "architectures": ["JanusForConditionalGeneration"],
            "model_type": "janus",
            "torch_dtype": "float32",
        }
        write_json(folder / "config.json", published | parts | settings)
    write_tokenizer(
        folder, tokenizer, kind="LlamaTokenizer", published=layout == "hub", template=None,
        bos_token=BOS, eos_token=EOS, pad_token=EOS, extra_special_tokens=TOKEN_NAMES,
    )  # fmt: skip
    if layout == "hub":
        kind = {"image_processor_type": "JanusImageProcessor", "processor_class": "JanusProcessor"}
        usual = {"do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True, "min_size": 14}
        more = {"resample": 3, "rescale_factor": 1 / 255}
        write_json(folder / "preprocessor_config.json", _settings() | usual | more | kind)
        name = {"processor_class": "JanusProcessor", **_LENGTH}
        write_json(folder / "processor_config.json", name)
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    else:
        write_processor(folder, "JanusProcessor", JanusImageProcessorPil(**_settings()), CHAT_TEMPLATE, **_LENGTH)
    return model


_LENGTH = {"num_image_tokens": TOKENS, "use_default_system_prompt": True}


def load_processor(folder: Path) -> Any:
    """transformers' processor with the Pillow image processor."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=TOKEN_NAMES)
    return JanusProcessor(JanusImageProcessorPil(**_settings()), tokenizer, chat_template=CHAT_TEMPLATE, **_LENGTH)


def _settings() -> dict[str, Any]:
    return {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
