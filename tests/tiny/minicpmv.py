"""MiniCPM-V 2.6 to 4.5 in their authors' layout, and a reading of their code in float64, which is the oracle.

What is followed: modeling_minicpmv.py, modeling_navit_siglip.py, resampler.py, image_processing_minicpmv.py and
processing_minicpmv.py as published beside the weights, with Pillow. Their decoder is transformers' own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers import (
    BatchFeature,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tiny import tokenizer as tokenizers
from tiny.common import F32, padded, randomize, write_json, write_safetensors, write_tokenizer

Version = Literal["2.6", "4.0", "4.5"]
PATCH, SIDE, SLICES, TABLE, QUERIES = 8, 48, 6, 70, 5
WIDTH, INNER, LAYERS, HEADS = 64, 96, 2, 2  # of the tower
MARKS = ("<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>", "<unk>")
PICTURE = "(<image>./</image>)"
# 2.6's is Qwen2's, with a system message of its own; the others' ask for no thinking where they know of it.
TEMPLATES = {
    "2.6": "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "4.0": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "4.5": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}",
}
DECODERS: dict[str, tuple[Any, Any]] = {
    "2.6": (Qwen2Config, Qwen2ForCausalLM),
    "4.0": (LlamaConfig, LlamaForCausalLM),
    "4.5": (Qwen3Config, Qwen3ForCausalLM),
}


def build(folder: Path, *, seed: int = 0, version: Version = "2.6", width: int = 256, drop: bool = False) -> Oracle:
    """Write a tiny MiniCPM-V into `folder`. width: of the decoder; the tower's 64 needs no map before the queries.

    drop: the tower's last layer was left out of the file, as config.json says.
    """
    tokenizer = tokenizers.qwen((*tokenizers.QWEN_SPECIALS, *MARKS, *tokenizers.QWEN_WORDS))
    ids = tokenizers.added_ids(tokenizer)
    text = {
        "hidden_size": width,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "vocab_size": padded(tokenizer.get_vocab_size()),
        "tie_word_embeddings": False,
        "eos_token_id": ids["<|im_end|>"],
        "bos_token_id": ids["<|endoftext|>"],
    }
    text |= {"head_dim": 32} if version == "4.5" else {}
    configs, models = DECODERS[version]
    llm = models(configs(**text, rope_parameters={"rope_type": "default", "rope_theta": 1e6})).eval()
    randomize(llm, seed, list(ids.values()))
    random = torch.Generator().manual_seed(seed + 1)
    own = {name: _filled(name, shape, random) for name, shape in _shapes(width).items()}
    folder.mkdir(parents=True, exist_ok=True)
    stored = own | {f"llm.{name}": value.contiguous() for name, value in llm.state_dict().items()}
    write_safetensors(folder, stored)
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS + drop,
        "num_attention_heads": HEADS,
        "image_size": TABLE * PATCH,
        "patch_size": PATCH,
    }
    auto = {"AutoConfig": "configuration_minicpm.MiniCPMVConfig", "AutoModel": "modeling_minicpmv.MiniCPMV"}
    config = {"architectures": ["MiniCPMV"], "auto_map": auto, "model_type": "minicpmv", "version": float(version)}
    config |= {"query_num": QUERIES, "drop_vision_last_layer": drop, "vision_config": vision, "rope_theta": 1e6}
    write_json(folder / "config.json", config | text | {"batch_vision_input": True, "image_size": SIDE})
    stops = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    llm.generation_config = GenerationConfig(pad_token_id=ids["<|endoftext|>"], eos_token_id=stops)
    llm.generation_config.save_pretrained(folder)
    write_tokenizer(
        folder, tokenizer, kind="MiniCPMVTokenizerFast", published=True, template=TEMPLATES[version],
        eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<unk>",
    )  # fmt: skip
    images = {
        "image_processor_type": "MiniCPMVImageProcessor", "processor_class": "MiniCPMVProcessor", "patch_size": PATCH,
        "max_slice_nums": SLICES, "scale_resolution": SIDE, "use_image_id": version != "4.0", "slice_mode": True,
        "image_feature_size": QUERIES, "norm_mean": [0.5, 0.45, 0.4], "norm_std": [0.5, 0.5, 0.45],
        "im_start": "<image>", "im_end": "</image>", "slice_start": "<slice>", "slice_end": "</slice>",
        "unk": "<unk>", "im_id_start": "<image_id>", "im_id_end": "</image_id>", "version": float(version),
    }  # fmt: skip
    write_json(folder / "preprocessor_config.json", images)
    return Oracle(own, llm, ids["<unk>"])


def _shapes(width: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "vpm.embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        "vpm.embeddings.patch_embedding.bias": (WIDTH,),
        "vpm.embeddings.position_embedding.weight": (TABLE**2, WIDTH),
        "resampler.query": (QUERIES, width),
        "resampler.proj": (width, width),
        "resampler.attn.in_proj_weight": (3 * width, width),
        "resampler.attn.in_proj_bias": (3 * width,),
    }
    maps = {"resampler.attn.out_proj": (width, width)}
    norms = {f"resampler.ln_{part}": width for part in ("q", "kv", "post")} | {"vpm.post_layernorm": WIDTH}
    for i in range(LAYERS):
        layer = f"vpm.encoder.layers.{i}"
        maps |= {f"{layer}.self_attn.{part}_proj": (WIDTH, WIDTH) for part in ("q", "k", "v", "out")}
        maps |= {f"{layer}.mlp.fc1": (INNER, WIDTH), f"{layer}.mlp.fc2": (WIDTH, INNER)}
        norms |= {f"{layer}.layer_norm{number}": WIDTH for number in (1, 2)}
    for name, shape in maps.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, size in norms.items():
        found |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    return found | ({} if width == WIDTH else {"resampler.kv_proj.weight": (width, WIDTH)})


def _filled(name: str, shape: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
    noise = torch.randn(shape, generator=random)
    if name.endswith("bias"):
        return 0.1 * noise
    if len(shape) == 1:
        return 1 + 0.2 * noise
    if name.endswith("position_embedding.weight"):
        return 0.5 * noise
    if name.endswith("query"):
        return noise
    gain = 1.7 if re.search(r"[qk]_proj|in_proj", name) else 1.0
    return gain / math.prod(shape[1:]) ** 0.5 * noise


class Oracle:
    """The published computation in float64, in the interface of transformers' models."""

    def __init__(self, own: dict[str, torch.Tensor], llm: Any, unk: int) -> None:
        self.w, self.llm, self.unk = {name: value.double() for name, value in own.items()}, llm.double(), unk
        self.model, self.config, self.generation_config = self, llm.config, llm.generation_config

    def get_image_features(self, pixel_values: torch.Tensor, target_sizes: torch.Tensor) -> Any:
        """Every view's patches, (1, 3, P, all of them * P), to (views * queries, D)."""
        found, start = [], 0
        for rows, cols in target_sizes.tolist():
            end = start + rows * cols * PATCH
            found.append(self._read(self._encode(pixel_values[:, :, :, start:end].double(), rows, cols), rows, cols))
            start = end
        return SimpleNamespace(pooler_output=torch.cat(found))

    def _encode(self, pixels: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
        kernel = self.w["vpm.embeddings.patch_embedding.weight"], self.w["vpm.embeddings.patch_embedding.bias"]
        x = functional.conv2d(pixels, *kernel, stride=PATCH)[0].flatten(1).T
        bounds = torch.arange(1 / TABLE, 1.0, 1 / TABLE)
        lines = [torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / count), bounds, right=True) for count in (rows, cols)]
        places = (lines[0][:, None] * TABLE + lines[1]).flatten()
        x = x + self.w["vpm.embeddings.position_embedding.weight"][places]
        for i in range(LAYERS):
            name = f"vpm.encoder.layers.{i}"
            h = self._norm(x, f"{name}.layer_norm1")
            q, k, v = (self._linear(h, f"{name}.self_attn.{part}_proj") for part in "qkv")
            x = x + self._linear(_attend(q, k, v, HEADS), f"{name}.self_attn.out_proj")
            h = self._linear(self._norm(x, f"{name}.layer_norm2"), f"{name}.mlp.fc1")
            x = x + self._linear(functional.gelu(h, approximate="tanh"), f"{name}.mlp.fc2")
        return self._norm(x, "vpm.post_layernorm")

    def _read(self, x: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
        width = self.w["resampler.query"].shape[1]
        x = x @ self.w["resampler.kv_proj.weight"].T if "resampler.kv_proj.weight" in self.w else x
        x = self._norm(x, "resampler.ln_kv")
        row, col = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
        places = torch.cat([_waves(col.flatten(), width // 2), _waves(row.flatten(), width // 2)], dim=-1)
        q = self._norm(self.w["resampler.query"], "resampler.ln_q")
        weights = self.w["resampler.attn.in_proj_weight"].chunk(3)
        biases = self.w["resampler.attn.in_proj_bias"].chunk(3)
        q, k, v = (h @ w.T + b for h, w, b in zip((q, x + places, x), weights, biases, strict=True))
        x = self._linear(_attend(q, k, v, width // 128), "resampler.attn.out_proj")
        return self._norm(x, "resampler.ln_post") @ self.w["resampler.proj"]

    def _embeds(self, input_ids: torch.Tensor, pictures: dict[str, torch.Tensor]) -> torch.Tensor:
        x = self.llm.get_input_embeddings()(input_ids).clone()
        if pictures:
            x[0, input_ids[0] == self.unk] = self.get_image_features(**pictures).pooler_output
        return x

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, **pictures: torch.Tensor) -> Any:
        return self.llm(inputs_embeds=self._embeds(input_ids, pictures))

    @torch.no_grad()
    def generate(self, *, input_ids: torch.Tensor, **inputs: Any) -> Any:
        pictures = {name: inputs.pop(name) for name in ("pixel_values", "target_sizes") if name in inputs}
        embeds = self._embeds(input_ids, pictures)
        stops = self.llm.generation_config
        stops.eos_token_id = None
        made = self.llm.generate(inputs_embeds=embeds, attention_mask=torch.ones_like(input_ids), **inputs)
        return SimpleNamespace(sequences=torch.cat([input_ids, made.sequences], dim=1), logits=made.logits)

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-6)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(0, 1) for part in (q, k, v))
    return ((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(0, 1).flatten(1)


def _waves(places: torch.Tensor, width: int) -> torch.Tensor:
    angles = places[:, None] / 10000 ** (torch.arange(width // 2).double() / (width // 2))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Processor:
    """What the published code makes of pictures and messages, in the interface of transformers' processors."""

    def __init__(self, tokenizer: Any, settings: dict[str, Any]) -> None:
        self.tokenizer, self.settings = tokenizer, settings

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        """`chat` there: a message's items on lines of their own, and no thinking."""

        def line(item: Any) -> str:
            return PICTURE if item["type"] == "image" else str(item["text"])

        flat = [{"role": m["role"], "content": "\n".join(map(line, m["content"]))} for m in messages]
        return str(self.tokenizer.apply_chat_template(flat, enable_thinking=False, **options))

    def __call__(self, *, text: str, images: Sequence[Image.Image] | None, return_tensors: str) -> BatchFeature:
        found = [sliced(image) for image in images or ()]
        whole, pieces = "<image>" + "<unk>" * QUERIES + "</image>", text.split(PICTURE)
        written = pieces[0]
        for number, ((_, grid), after) in enumerate(zip(found, pieces[1:], strict=True)):
            written += f"<image_id>{number}</image_id>" if self.settings["use_image_id"] else ""
            slice_ = "<slice>" + "<unk>" * QUERIES + "</slice>"
            written += whole + ("\n".join([slice_ * grid[0]] * grid[1]) if grid else "") + after
        data: dict[str, Any] = {"input_ids": torch.tensor([self.tokenizer(written)["input_ids"]])}
        if found:
            views = [view for own, _ in found for view in own]
            mean, std = (np.array(self.settings[f"norm_{name}"], np.float32) for name in ("mean", "std"))
            pixels = [((np.asarray(v).astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1) for v in views]
            rows = [_patches(torch.from_numpy(each)) for each in pixels]
            data |= {"pixel_values": torch.cat(rows, dim=-1)[None]}
            data |= {"target_sizes": torch.tensor([[p.shape[1] // PATCH, p.shape[2] // PATCH] for p in pixels])}
        return BatchFeature(data)


def _patches(image: torch.Tensor) -> torch.Tensor:
    """reshape_by_patch there."""
    patches = functional.unfold(image[None], (PATCH, PATCH), stride=(PATCH, PATCH))
    return patches.reshape(3, PATCH, PATCH, -1).permute(0, 1, 3, 2).reshape(3, PATCH, -1)


def sliced(
    image: Image.Image, most: int = SLICES, side: int = SIDE, patch: int = PATCH
) -> tuple[list[Image.Image], tuple[int, int] | None]:
    """slice_image there: the whole picture and its slices, and their columns and rows."""
    grid = sliced_grid(image.size, most, side)
    whole = image.resize(best_size(image.size, side, patch, grid is None), Image.Resampling.BICUBIC)
    if grid is None:
        return [whole], None
    width, height = (_whole(edge, count) / count for edge, count in zip(image.size, grid, strict=True))
    wide, high = best_size((width, height), side, patch, True)
    canvas = image.resize((wide * grid[0], high * grid[1]), Image.Resampling.BICUBIC)
    places = [(x, y) for y in range(0, canvas.height, high) for x in range(0, canvas.width, wide)]
    return [whole, *(canvas.crop((x, y, x + wide, y + high)) for x, y in places)], grid


def best_size(size: tuple[float, float], side: int, patch: int, enlarge: bool) -> tuple[int, int]:
    """find_best_resize there."""
    width, height = size
    if width * height > side * side or enlarge:
        ratio = width / height
        height = int(side / math.sqrt(ratio))
        width = int(height * ratio)
    return _whole(width, patch), _whole(height, patch)


def sliced_grid(size: tuple[int, int], most: int, side: int) -> tuple[int, int] | None:
    """get_sliced_grid there."""
    multiple = min(math.ceil(size[0] * size[1] / (side * side)), most)
    if multiple <= 1:
        return None
    offered = [
        (m, count // m)
        for count in (multiple - 1, multiple, multiple + 1)
        if count != 1 and count <= most
        for m in range(1, count + 1)
        if count % m == 0
    ]
    shape = math.log(size[0] / size[1])
    return min(offered, key=lambda grid: abs(shape - math.log(grid[0] / grid[1])))


def _whole(length: float, unit: int) -> int:
    return max(round(length / unit) * unit, unit)


def load_processor(folder: Path) -> Processor:
    import json

    settings = json.loads((folder / "preprocessor_config.json").read_text())
    return Processor(PreTrainedTokenizerFast.from_pretrained(folder), settings)


def views(inputs: dict[str, Any]) -> list[F32]:
    """Patches row by row, (1, 3, P, all of them * P), back to pictures."""
    found, start = [], 0
    for rows, cols in inputs["target_sizes"].tolist():
        end = start + rows * cols * PATCH
        patches = inputs["pixel_values"][0, :, :, start:end].reshape(3, PATCH, rows, cols, PATCH)
        found.append(patches.transpose(0, 2, 1, 3, 4).reshape(3, rows * PATCH, cols * PATCH))
        start = end
    return found
