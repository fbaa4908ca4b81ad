"""dots.ocr in its authors' layout, and a reading of their code in float64, which is the oracle.

What is followed: modeling_dots_vision.py of rednote-hilab/dots.ocr (the tower and the patches' order) as its ports show
it, over transformers' Qwen2, which modeling_dots_ocr.py subclasses. Its processor is Qwen2.5-VL's with other tokens.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2_5_VLProcessor, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tiny import tokenizer as tokenizers
from tiny.common import CLIP_MEAN, CLIP_STD, padded, randomize, without_videos, write_json, write_safetensors
from tiny.common import write_tokenizer as write_tokens

SPECIALS = (
    "<|endoftext|>", "<|imgpad|>", "<|img|>", "<|endofimg|>", "<|systemprompt|>", "<|endofsystemprompt|>", "<|user|>",
    "<|endofuser|>", "<|assistant|>", "<|endofassistant|>", "<|video_pad|>",
)  # fmt: skip
VISION: dict[str, Any] = {
    "embed_dim": 64, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_channels": 3, "patch_size": 8, "post_norm": True, "rms_norm_eps": 1e-5, "spatial_merge_size": 2,
    "temporal_patch_size": 1, "use_bias": False, "is_causal": False,
}  # fmt: skip
LEAST, MOST = 4 * 16 * 16, 40 * 16 * 16
# What the published template writes, in few words: the assistant's messages are texts, and no answer is asked for
# behind one.
CHAT_TEMPLATE = (
    "{%- for m in messages %}{%- if m.role == 'system' %}{{- '<|system|>' + m.content + '<|endofsystem|>\\n' }}"
    "{%- elif m.role == 'user' %}{{- '<|user|>' }}{%- if m.content is string %}{{- m.content }}{%- else %}"
    "{%- for part in m.content %}{%- if part.type == 'image' %}{{- '<|img|><|imgpad|><|endofimg|>' }}"
    "{%- else %}{{- part.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|endofuser|>' }}"
    "{%- elif m.role == 'assistant' %}{{- '<|assistant|>' + m.content }}"
    "{%- if not loop.last %}{{- '<|endofassistant|>' }}{%- endif %}{%- endif %}{%- endfor %}"
    "{%- if messages[-1].role != 'assistant' %}{{- '<|assistant|>' }}{%- endif %}"
)


def build(folder: Path, *, seed: int = 0, biased: bool = False) -> Oracle:
    """Write a tiny dots.ocr into `folder`. biased: with biases in the tower's layers, which the published one lacks."""
    tokenizer = tokenizers.qwen(specials=SPECIALS)
    ids = tokenizers.added_ids(tokenizer)
    stops = [ids["<|endoftext|>"], ids["<|endofassistant|>"]]
    text = {
        "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 2048, "max_window_layers": 2,
        "rms_norm_eps": 1e-6, "use_sliding_window": False, "sliding_window": 2048, "tie_word_embeddings": False,
        "vocab_size": padded(tokenizer.get_vocab_size()),
    }  # fmt: skip
    decoder = Qwen2ForCausalLM(Qwen2Config(**text, rope_parameters={"rope_type": "default", "rope_theta": 1e6})).eval()
    randomize(decoder, seed, list(ids.values()))
    decoder.generation_config = GenerationConfig(pad_token_id=stops[0], eos_token_id=stops)
    vision = VISION | {"use_bias": biased}
    weights = _tower(vision, seed)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder, {name: value.clone() for name, value in decoder.state_dict().items()} | weights)
    published = {
        "architectures": ["DotsOCRForCausalLM"], "model_type": "dots_ocr", "torch_dtype": "float32",
        "rope_scaling": None, "rope_theta": 1000000, "attention_bias": True, "image_token_id": ids["<|imgpad|>"],
        "video_token_id": ids["<|video_pad|>"], "vision_config": vision,
    }  # fmt: skip
    write_json(folder / "config.json", text | published)
    decoder.generation_config.save_pretrained(folder)
    write_tokens(
        folder, tokenizer, kind="Qwen2Tokenizer", published=True, template=None, eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )  # fmt: skip
    settings = {"patch_size": 8, "temporal_patch_size": 1, "merge_size": 2, "min_pixels": LEAST, "max_pixels": MOST}
    settings |= {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "image_processor_type": "Qwen2VLImageProcessor"}
    write_json(folder / "preprocessor_config.json", settings | {"processor_class": "DotsVLProcessor"})
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    return Oracle(decoder.double(), weights, vision, ids["<|imgpad|>"])


def _tower(vision: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Random weights, every one of which matters."""
    random, made = torch.Generator().manual_seed(seed + 1), {}
    width, inner, group = vision["embed_dim"], vision["intermediate_size"], vision["spatial_merge_size"] ** 2

    def linear(name: str, *shape: int, bias: bool = True) -> None:
        fan_in = int(torch.tensor(shape[1:]).prod())
        made[f"vision_tower.{name}.weight"] = torch.randn(shape, generator=random) / fan_in**0.5
        if bias:
            made[f"vision_tower.{name}.bias"] = 0.1 * torch.randn(shape[0], generator=random)

    def norm(name: str) -> None:
        made[f"vision_tower.{name}.weight"] = 1 + 0.2 * torch.randn(width, generator=random)

    linear("patch_embed.patchifier.proj", width, 3, vision["patch_size"], vision["patch_size"])
    norm("patch_embed.patchifier.norm")
    for i in range(vision["num_hidden_layers"]):
        norm(f"blocks.{i}.norm1")
        linear(f"blocks.{i}.attn.qkv", 3 * width, width, bias=vision["use_bias"])
        linear(f"blocks.{i}.attn.proj", width, width, bias=vision["use_bias"])
        norm(f"blocks.{i}.norm2")
        for name, rows, columns in (("fc1", inner, width), ("fc2", width, inner), ("fc3", inner, width)):
            linear(f"blocks.{i}.mlp.{name}", rows, columns, bias=vision["use_bias"])
    norm("post_trunk_norm")
    norm("merger.ln_q")
    made["vision_tower.merger.ln_q.bias"] = 0.1 * torch.randn(width, generator=random)
    linear("merger.mlp.0", width * group, width * group)
    linear("merger.mlp.2", vision["hidden_size"], width * group)
    return made


class Oracle:
    """The published computation in float64, in the interface of transformers' models."""

    def __init__(
        self, decoder: Any, weights: dict[str, torch.Tensor], vision: dict[str, Any], image_token: int
    ) -> None:
        self.decoder, self.vision, self.image_token = decoder, vision, image_token
        self.w = {name.removeprefix("vision_tower."): value.double() for name, value in weights.items()}
        self.model, self.config, self.generation_config = self, decoder.config, decoder.generation_config

    def get_image_features(self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> Any:
        """Patches (N, 3 P^2) of all pictures, four of a token behind each other, to (N / 4, D)."""
        counts = image_grid_thw.prod(-1).tolist()
        found = [self._encode(*each) for each in zip(pixel_values.split(counts), image_grid_thw, strict=True)]
        return SimpleNamespace(pooler_output=torch.cat(found))

    def _encode(self, patches: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        v, side = self.vision, self.vision["spatial_merge_size"]
        kernel = self.w["patch_embed.patchifier.proj.weight"].flatten(1)
        x = patches.double() @ kernel.T + self.w["patch_embed.patchifier.proj.bias"]
        x = self._rms(x, "patch_embed.patchifier.norm")
        _, rows, cols = grid.tolist()
        place = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij"), -1)
        place = place.reshape(rows // side, side, cols // side, side, 2).transpose(1, 2).reshape(-1, 2)
        size = v["embed_dim"] // v["num_attention_heads"]
        frequencies = 10000.0 ** -(torch.arange(0, size // 2, 2).double() / (size // 2))
        angles = (place[:, :, None] * frequencies).flatten(1).repeat(1, 2)
        for i in range(v["num_hidden_layers"]):
            name = f"blocks.{i}"
            qkv = self._linear(self._rms(x, f"{name}.norm1"), f"{name}.attn.qkv")
            q, k, value = qkv.unflatten(-1, (3, v["num_attention_heads"], size)).permute(1, 2, 0, 3)
            q, k = (self._turned(part, angles) for part in (q, k))
            seen = (q @ k.transpose(-1, -2) / size**0.5).softmax(-1) @ value
            x = x + self._linear(seen.transpose(0, 1).flatten(1), f"{name}.attn.proj")
            h = self._rms(x, f"{name}.norm2")
            gate = functional.silu(self._linear(h, f"{name}.mlp.fc1")) * self._linear(h, f"{name}.mlp.fc3")
            x = x + self._linear(gate, f"{name}.mlp.fc2")
        x = self._rms(x, "post_trunk_norm")
        norm = self.w["merger.ln_q.weight"], self.w["merger.ln_q.bias"]
        x = functional.layer_norm(x, x.shape[-1:], *norm, eps=1e-6).reshape(len(x) // side**2, -1)
        return self._linear(functional.gelu(self._linear(x, "merger.mlp.0")), "merger.mlp.2")

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> Any:
        return self.decoder(inputs_embeds=self._embeds(inputs))

    def generate(self, **inputs: Any) -> Any:
        embeds, given = self._embeds(inputs), ("pixel_values", "image_grid_thw", "mm_token_type_ids")
        return self.decoder.generate(
            inputs_embeds=embeds, **{name: value for name, value in inputs.items() if name not in given}
        )

    @torch.no_grad()
    def _embeds(self, inputs: dict[str, Any]) -> torch.Tensor:
        ids = inputs["input_ids"]
        found: torch.Tensor = self.decoder.get_input_embeddings()(ids).clone()
        if "pixel_values" in inputs:
            pictures = self.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
            found[ids == self.image_token] = pictures.pooler_output
        return found

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", torch.zeros(()))

    def _rms(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + self.vision["rms_norm_eps"]).rsqrt() * self.w[f"{name}.weight"]

    @staticmethod
    def _turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


def load_processor(folder: Path) -> Any:
    """Qwen2.5-VL's processor, which the published one subclasses, with its image token."""
    made = without_videos(
        Qwen2_5_VLProcessor,
        image_processor=Qwen2VLImageProcessorPil.from_pretrained(folder),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder),
        chat_template=CHAT_TEMPLATE,
    )
    made.image_token, made.image_token_id = "<|imgpad|>", made.tokenizer.convert_tokens_to_ids("<|imgpad|>")
    return made
