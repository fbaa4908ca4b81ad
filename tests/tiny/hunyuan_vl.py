"""HunyuanOCR: framed rows of features, a table of 6 x 6 positions, four axes over both halves of a head."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    GenerationConfig,
    HunYuanVLConfig,
    HunYuanVLForConditionalGeneration,
    HunYuanVLProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.hunyuan_vl.image_processing_pil_hunyuan_vl import HunYuanVLImageProcessorPil

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
START, USER, ASSISTANT, SYSTEM = (
    "<\uff5chy_begin\u2581of\u2581sentence\uff5c>",
    "<\uff5chy_User\uff5c>",
    "<\uff5chy_Assistant\uff5c>",
    "<\uff5chy_place\u2581holder\u2581no\u25813\uff5c>",
)
OPEN, CLOSE, IMAGE = (f"<\uff5chy_place\u2581holder\u2581no\u2581{n}\uff5c>" for n in (100, 101, 102))
PAD = "<\uff5chy_\u2581pad\u2581\uff5c>"
ADDED = (START, USER, ASSISTANT, SYSTEM, OPEN, CLOSE, IMAGE, PAD)
NAMED = {"image_token": IMAGE, "image_start_token": OPEN, "image_end_token": CLOSE}
LEAST, MOST = 4 * 16 * 16, 40 * 16 * 16  # pixels of 4 to 40 groups of patches
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}{{ 'START' }}{% endif %}"
    "{% if message['role'] == 'system' %}{{ 'START' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ 'OPENIMAGECLOSE' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'system' %}{{ 'SYSTEM' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT' }}{% endif %}"
    "{% endfor %}"
)
for name, token in (
    ("START", START), ("OPENIMAGECLOSE", OPEN + IMAGE + CLOSE), ("'SYSTEM'", f"'{SYSTEM}'"), ("'USER'", f"'{USER}'"),
    ("'ASSISTANT'", f"'{ASSISTANT}'"),
):  # fmt: skip
    CHAT_TEMPLATE = CHAT_TEMPLATE.replace(name, token)


def build(
    folder: Path, *, seed: int = 0, layout: Layout = "hub", tie: bool = True, sections: tuple[int, ...] = (6, 2, 4, 4)
) -> Any:
    """Write a tiny HunyuanOCR into `folder`; returns its model in float32.

    layout: "hub": the authors' `vit.*` and `model.*` with their flat config; "saved": what transformers 5 saves;
    "memory": `model.vision_tower.*`, `model.language_model.*`. sections: frequencies of the axes; three leave out the
    index of a token.
    """
    tokenizer = tokenizers.qwen(ADDED)
    ids = tokenizers.added_ids(tokenizer)
    rope = {"alpha": 50.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    text = {
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "vocab_size": padded(tokenizer.get_vocab_size()),
        "bos_token_id": ids[START],
        "eos_token_id": ids[ASSISTANT],
        "pad_token_id": ids[PAD],
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 112,
        "max_image_size": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 1,
        "text_hidden_size": 96,
        "rms_norm_eps": 1e-5,
        "hidden_act": "gelu",
    }
    places = {"image_token_id": ids[IMAGE], "im_start_id": ids[OPEN], "im_end_id": ids[CLOSE]}
    parameters = rope | {"rope_type": "xdrope", "xdrope_section": list(sections), "rope_theta": 10000.0}
    config = HunYuanVLConfig(
        text_config=text | {"rope_parameters": parameters, "tie_word_embeddings": tie},
        vision_config=dict(vision),
        tie_word_embeddings=tie,
        **places,
    )
    model = HunYuanVLForConditionalGeneration(config).eval()
    randomize(model, seed, list(ids.values()))
    noise = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".image_" in name:  # rows as large as features, so that a missing one shows
                parameter.copy_(torch.randn(parameter.shape, generator=noise))
            elif name.endswith(("query_layernorm.weight", "key_layernorm.weight")):  # heads that look at something
                parameter.copy_(1.8 + 0.2 * torch.randn(parameter.shape, generator=noise))
    model.generation_config = GenerationConfig(
        bos_token_id=ids[START], pad_token_id=ids[PAD], eos_token_id=ids[ASSISTANT]
    )
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "saved":
        model.save_pretrained(folder)
    else:
        write_tensors(folder, model, _published if layout == "hub" else lambda name: name)
        config.architectures = ["HunYuanVLForConditionalGeneration"]
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    if layout == "hub":
        published = {"architectures": config.architectures, "model_type": "hunyuan_vl", "torch_dtype": "float32"}
        flat = {"rope_theta": 10000.0, "rope_scaling": rope | {"type": "xdrope", "xdrope_section": list(sections)}}
        more = {"attention_head_dim": 32, "org_vocab_size": text["vocab_size"], "mlp_bias": False, "use_qk_norm": True}
        flat |= {"tie_word_embeddings": tie, "vision_config": vision | {"cat_extra_token": 1}}
        write_json(folder / "config.json", published | text | places | flat | more)
    _write_processor(folder, tokenizer, layout)
    return model


def _published(name: str) -> str:
    """The authors' name of a tensor."""
    parts = renamed(
        (r"model\.vision_tower\.patch_merger\.proj_conv\.", "vit.perceive.proj.0."),
        (r"model\.vision_tower\.patch_merger\.proj_out\.", "vit.perceive.proj.2."),
        (r"model\.vision_tower\.patch_merger\.", "vit.perceive."),
        (r"model\.vision_tower\.", "vit."),
        (r"model\.language_model\.", "model."),
    )
    name = parts(name)
    if name.startswith("vit."):
        for new, old in (
            ("mlp.fc1", "mlp.dense_h_to_4h"),
            ("mlp.fc2", "mlp.dense_4h_to_h"),
            ("layer_norm1", "input_layernorm"),
            ("layer_norm2", "post_attention_layernorm"),
        ):
            name = name.replace(new, old)
    return name


def load_processor(folder: Path) -> Any:
    """transformers' processor with the Pillow image processor."""
    return HunYuanVLProcessor(
        image_processor=HunYuanVLImageProcessorPil.from_pretrained(folder),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=NAMED),
        chat_template=CHAT_TEMPLATE,
    )


def _write_processor(folder: Path, tokenizer: Any, layout: Layout) -> None:
    write_tokenizer(
        folder,
        tokenizer,
        kind="PreTrainedTokenizerFast",
        published=layout == "hub",
        template=CHAT_TEMPLATE,
        bos_token=START,
        eos_token=ASSISTANT,
        pad_token=PAD,
        extra_special_tokens=NAMED,
    )
    settings: dict[str, Any] = {"patch_size": 8, "temporal_patch_size": 1, "merge_size": 2, "resample": 1}
    settings |= {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    if layout == "hub":
        settings |= {"min_pixels": LEAST, "max_pixels": MOST, "image_processor_type": "HunYuanVLImageProcessor"}
        write_json(folder / "preprocessor_config.json", settings | {"processor_class": "HunYuanVLProcessor"})
    else:
        images = HunYuanVLImageProcessorPil(size={"shortest_edge": LEAST, "longest_edge": MOST}, **settings)
        write_processor(folder, "HunYuanVLProcessor", images, CHAT_TEMPLATE)
