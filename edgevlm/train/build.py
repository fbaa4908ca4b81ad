"""The default model's architecture, tokenizer and processor, in the plain Hugging Face SmolVLM layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Idefics3Processor,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from edgevlm.train.default_parts import plane_waves
from edgevlm.train.questions import every_text
from edgevlm.train.words import COMMON, SENTENCES

TILE = 96
PATCH = 8
SCALE = 2
IMAGE_TOKENS = (TILE // PATCH // SCALE) ** 2
VOCABULARY = 1280
CONTEXT = 2048
GRID = 6  # tiles are named <row_1_col_1> ... <row_6_col_6>

ROLES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
IMAGE_MARKS = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>"]
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def special_tokens() -> list[str]:
    rows = [f"<row_{r}_col_{c}>" for r in range(1, GRID + 1) for c in range(1, GRID + 1)]
    return ROLES + IMAGE_MARKS + rows


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with SmolLM2's pre-tokenizer, trained on the question forms and on common English."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        show_progress=False,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in special_tokens()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} entries, expected {VOCABULARY}")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=IMAGE_MARKS,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
        padding_side="left",
        truncation_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def _corpus() -> list[str]:
    texts = every_text()
    texts += ["\n\n", "User", "Assistant", "System", " User", ":"] * 400
    texts += [w for word in dict.fromkeys(COMMON) for w in (f" {word}", f" {word}", word)] * 4
    return texts + list(SENTENCES) * 6


def build_config(tokenizer: PreTrainedTokenizerFast) -> SmolVLMConfig:
    """SigLIP tower 6 x 192, pixel shuffle by 2, Llama decoder 4 x 256: about 5.5 million parameters."""
    names = ("<image>", "<|im_start|>", "<end_of_utterance>", "<|im_end|>")
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in names}
    common: dict[str, Any] = {
        "bos_token_id": ids["<|im_start|>"],
        "eos_token_id": ids["<end_of_utterance>"],
        "pad_token_id": ids["<|im_end|>"],
    }
    return SmolVLMConfig(
        image_token_id=ids["<image>"],
        scale_factor=SCALE,
        tie_word_embeddings=True,
        vision_config={
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": 3,
            "image_size": TILE,
            "patch_size": PATCH,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "initializer_range": 0.06,  # about 1 / sqrt(width); the usual 0.02 suits wider towers
        },
        text_config={
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": 256,
            "intermediate_size": 640,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "initializer_range": 0.05,
            "max_position_embeddings": CONTEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "tie_word_embeddings": True,
            **common,
        },
        **common,
    )


def build_model(config: SmolVLMConfig) -> SmolVLMForConditionalGeneration:
    """Fresh weights. Positions start as plane waves, from which attention to neighbours is soon learnt."""
    model = SmolVLMForConditionalGeneration(config)
    positions = model.model.vision_model.embeddings.position_embedding.weight
    with torch.no_grad():
        positions.copy_(0.5 * plane_waves(TILE // PATCH, positions.shape[1]))
    model.generation_config.do_sample = False
    model.generation_config.max_new_tokens = 64
    return model


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Idefics3Processor:
    """Single-tile by default; `do_image_splitting=True` gives the tiled mode."""
    images = SmolVLMImageProcessorPil(
        do_image_splitting=False,
        size={"longest_edge": 4 * TILE},
        max_image_size={"longest_edge": TILE},
    )
    return Idefics3Processor(images, tokenizer, image_seq_len=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE)


def save(folder: Path, model: SmolVLMForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write weights (fp16) and every configuration file. `model` is converted in place."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    processor = build_processor(tokenizer)
    processor.save_pretrained(folder)
    _write_for_older_readers(folder)


def _write_for_older_readers(folder: Path) -> None:
    """transformers 5 writes what only it reads: add the fields and files by which transformers 4 and others go."""

    def read(name: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((folder / name).read_text())
        return values

    def write(name: str, values: dict[str, Any]) -> None:
        (folder / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")

    config = read("config.json")
    config["pad_token_id"] = config["text_config"]["pad_token_id"]
    config["text_config"]["rope_theta"] = config["text_config"]["rope_parameters"]["rope_theta"]
    write("config.json", config)
    write("preprocessor_config.json", read("processor_config.json")["image_processor"])
    settings = read("tokenizer_config.json")
    settings.pop("extra_special_tokens", None)
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": IMAGE_MARKS}
    write("tokenizer_config.json", settings)
    names = ("bos_token", "eos_token", "pad_token", "unk_token", "additional_special_tokens")
    write("special_tokens_map.json", {name: settings[name] for name in names})


def load(folder: Path) -> tuple[SmolVLMForConditionalGeneration, Idefics3Processor]:
    """The stored weights, computed in fp32, and the processor."""
    model = SmolVLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    images = SmolVLMImageProcessorPil(**json.loads((folder / "preprocessor_config.json").read_text()))
    return model, Idefics3Processor(images, tokenizer, image_seq_len=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE)
