"""Moondream 2 in its authors' layout, and a reading of their code in float64, which is the oracle.

What is followed: moondream/torch of vikhyat/moondream (44146f1): image_crops.py with Pillow, vision.py, text.py,
region.py and the tasks of moondream.py. Sizes that are constants there (378 pixels, patches of 14, margins of 4) are
small here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch.nn import functional
from transformers import BatchFeature, PreTrainedTokenizerFast

from tiny import tokenizer as tokenizers
from tiny.common import padded, write_json, write_tokenizer

Layout = Literal["hub", "own"]
SIDE, PATCH, MARGIN, CROPS = 48, 8, 1, 6  # pixels of a square and of a patch, patches of a margin, crops at most
GRID = SIDE // PATCH
VISION = {"enc_dim": 64, "enc_n_layers": 2, "enc_ff_dim": 96, "enc_n_heads": 2, "proj_inner_dim": 160}
TEXT = {"dim": 128, "ff_dim": 192, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "max_context": 2048}
REGION = {
    "dim": TEXT["dim"], "coord_feat_dim": 16, "coord_out_dim": 256, "size_feat_dim": 24, "size_out_dim": 2048,
    "inner_dim": 32,
}  # fmt: skip
FIRST = ("<|endoftext|>", "<|md_reserved_0|>", "<|md_reserved_1|>", "<|md_reserved_2|>", "<|md_reserved_3|>")
BEGIN, TASK, ASKED, ANSWER = range(4)


def build(folder: Path, *, seed: int = 0, layout: Layout = "hub", ends: float = 0.0) -> Oracle:
    """Write a tiny Moondream 2 into `folder`. layout: "own" is without the Hub's prefix "model.".

    ends: added to the logits of the token that ends texts and lists of places.
    """
    splits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer = tokenizers.byte_level(FIRST, (), splits)
    text = TEXT | {"vocab_size": padded(tokenizer.get_vocab_size())}
    vision = VISION | {
        "enc_patch_size": PATCH, "crop_size": SIDE, "max_crops": CROPS, "overlap_margin": MARGIN,
        "proj_out_dim": TEXT["dim"],
    }  # fmt: skip
    weights = _random(_shapes(text, vision), seed, tokenizer.get_vocab_size())
    weights["text.lm_head.bias"][BEGIN] += ends
    prefix = "model." if layout == "hub" else ""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {prefix + name: value.contiguous() for name, value in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"text": text, "vision": vision, "region": REGION}
    auto = {"AutoConfig": "hf_moondream.HfConfig", "AutoModelForCausalLM": "hf_moondream.HfMoondream"}
    published = {"architectures": ["HfMoondream"], "auto_map": auto, "config": config, "torch_dtype": "float32"}
    write_json(folder / "config.json", published | {"model_type": "moondream1"})
    tokens = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    write_tokenizer(folder, tokenizer, kind="CodeGenTokenizer", published=True, template=None, **tokens)
    return Oracle(weights)


def _shapes(text: dict[str, int], vision: dict[str, int]) -> dict[str, tuple[int, ...]]:
    d, v, inner = text["dim"], vision["enc_dim"], vision["proj_inner_dim"]
    qkv = d + 2 * d * text["n_kv_heads"] // text["n_heads"]
    found: dict[str, tuple[int, ...]] = {
        "text.wte": (text["vocab_size"], d),
        "vision.pos_emb": (1, GRID**2, v),
        "region.coord_features": (1, REGION["coord_feat_dim"] // 2),
        "region.size_features": (2, REGION["size_feat_dim"] // 2),
    }

    def linear(name: str, rows: int, columns: int) -> None:
        found.update({f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)})

    def layer(prefix: str, norms: Sequence[str], width: int, rows: int, ff: int) -> None:
        for norm in norms:
            found.update({f"{prefix}.{norm}.weight": (width,), f"{prefix}.{norm}.bias": (width,)})
        linear(f"{prefix}.attn.qkv", rows, width)
        linear(f"{prefix}.attn.proj", width, width)
        linear(f"{prefix}.mlp.fc1", ff, width)
        linear(f"{prefix}.mlp.fc2", width, ff)

    for i in range(text["n_layers"]):
        layer(f"text.blocks.{i}", ["ln"], d, qkv, text["ff_dim"])
    for i in range(vision["enc_n_layers"]):
        layer(f"vision.blocks.{i}", ["ln1", "ln2"], v, 3 * v, vision["enc_ff_dim"])
    for name, width in (("text.post_ln", d), ("vision.post_ln", v)):
        found.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})
    linear("text.lm_head", text["vocab_size"], d)
    linear("vision.patch_emb", v, 3 * PATCH**2)
    linear("vision.proj_mlp.fc1", inner, 2 * v)
    linear("vision.proj_mlp.fc2", d, inner)
    for name, given, made in (("coord", "coord_feat_dim", "coord_out_dim"), ("size", "size_feat_dim", "size_out_dim")):
        linear(f"region.{name}_encoder", d, REGION[given])
        linear(f"region.{name}_decoder.fc1", REGION["inner_dim"], d)
        linear(f"region.{name}_decoder.fc2", REGION[made], REGION["inner_dim"])
    return found


def _random(shapes: dict[str, tuple[int, ...]], seed: int, words: int) -> dict[str, torch.Tensor]:
    """Every tensor matters to the logits, and control tokens lose against words."""
    random, made = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=random)
        if name.endswith("bias"):
            made[name] = 0.1 * noise
        elif ".ln" in name or "post_ln" in name:
            made[name] = 1 + 0.2 * noise
        elif name in ("text.wte", "vision.pos_emb"):
            made[name] = (1.0 if name == "text.wte" else 0.5) * noise
        else:
            gain = 6.0 if "lm_head" in name else 1.7 if "qkv" in name else 1.5 if "text" in name else 1.0
            made[name] = gain / shape[-1] ** 0.5 * noise
    head = made["text.lm_head.weight"]
    head[: len(FIRST)] *= 0.2
    head[words:] *= 0.2
    return made


class Oracle:
    """The published computation in float64, in the interface of transformers' models."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.w = {name: value.double() for name, value in weights.items()}
        self.model, self.config, self.generation_config = self, SimpleNamespace(), SimpleNamespace(eos_token_id=0)

    def get_image_features(self, pixel_values: torch.Tensor, tiling: torch.Tensor) -> Any:
        """Squares (1 + crops, 3, S, S), the whole picture first, to (tokens, D)."""
        states = self._encode(pixel_values.double())
        rows, cols = tiling.tolist()
        whole, crops = states[0], states[1:].reshape(rows, cols, GRID, GRID, -1)
        step = GRID - 2 * MARGIN
        stitched = torch.zeros(rows * step + 2 * MARGIN, cols * step + 2 * MARGIN, crops.shape[-1]).double()
        for r in range(rows):
            for c in range(cols):
                top, left = (0 if n == 0 else MARGIN for n in (r, c))
                bottom, right = (GRID - (0 if n == last - 1 else MARGIN) for n, last in ((r, rows), (c, cols)))
                place = stitched[r * step + top : r * step + bottom, c * step + left : c * step + right]
                place.copy_(crops[r, c, top:bottom, left:right])
        pooled = functional.adaptive_avg_pool2d(stitched.permute(2, 0, 1), (GRID, GRID)).permute(1, 2, 0)
        both = torch.cat([whole, pooled.reshape(GRID**2, -1)], dim=-1)
        return SimpleNamespace(pooler_output=self._mlp(both, "vision.proj_mlp"))

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        count = len(pixels)
        cells = pixels.reshape(count, 3, GRID, PATCH, GRID, PATCH).permute(0, 2, 4, 1, 3, 5)
        x = self._linear(cells.reshape(count, GRID**2, -1), "vision.patch_emb") + self.w["vision.pos_emb"]
        for i in range(VISION["enc_n_layers"]):
            name = f"vision.blocks.{i}"
            qkv = self._linear(self._norm(x, f"{name}.ln1"), f"{name}.attn.qkv")
            q, k, v = (self._heads(part, VISION["enc_n_heads"]) for part in qkv.chunk(3, dim=-1))
            x = x + self._linear(self._attend(q, k, v, None), f"{name}.attn.proj")
            x = x + self._mlp(self._norm(x, f"{name}.ln2"), f"{name}.mlp")
        return self._norm(x, "vision.post_ln")

    @torch.no_grad()
    def __call__(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None = None, tiling: torch.Tensor | None = None
    ) -> Any:
        x = self._embedded(input_ids, pixel_values, tiling)
        return SimpleNamespace(logits=self._head(self._hidden(x, pixel_values is not None))[None])

    def _embedded(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None, tiling: torch.Tensor | None
    ) -> torch.Tensor:
        x = self.w["text.wte"][input_ids[0]]
        if pixel_values is not None:
            assert tiling is not None
            x[1 : 1 + GRID**2] = self.get_image_features(pixel_values, tiling).pooler_output
        return x

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._linear(self._norm(hidden, "text.post_ln"), "text.lm_head")

    def _hidden(self, x: torch.Tensor, picture: bool) -> torch.Tensor:
        """text_decoder there: embeddings (S, D) to what the last block gives."""
        length = len(x)
        seen = torch.ones(length, length).tril().bool()
        if picture:
            seen[: 1 + GRID**2, : 1 + GRID**2] = True
        heads, kv = TEXT["n_heads"], TEXT["n_kv_heads"]
        size = TEXT["dim"] // heads
        for i in range(TEXT["n_layers"]):
            name = f"text.blocks.{i}"
            h = self._norm(x, f"{name}.ln")
            parts = self._linear(h, f"{name}.attn.qkv").split([heads * size, kv * size, kv * size], dim=-1)
            q, k, v = (self._heads(part, n) for part, n in zip(parts, (heads, kv, kv), strict=True))
            q, k, v = self._turned(q), self._turned(k).repeat_interleave(heads // kv, 0), v.repeat_interleave(2, 0)
            x = x + self._linear(self._attend(q, k, v, seen), f"{name}.attn.proj") + self._mlp(h, f"{name}.mlp")
        return x

    @torch.no_grad()
    def places(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor, tiling: torch.Tensor, *, size: bool, most: int
    ) -> list[dict[str, float]]:
        """_generate_points there: at most `most` boxes, or points without `size`, in shares of the picture's sides."""
        x, out = self._embedded(input_ids, pixel_values, tiling), list[dict[str, float]]()
        hidden = self._hidden(x, True)[-1]

        def fed(row: torch.Tensor) -> torch.Tensor:
            nonlocal x
            x = torch.cat([x, row[None]])
            return self._hidden(x, True)[-1]

        while self._head(hidden).argmax() != BEGIN and len(out) < most:
            logits = self._mlp(hidden, "region.coord_decoder")
            x_center = logits.argmax() / logits.shape[-1]
            hidden = fed(self._encoded(x_center[None], "coord"))
            logits = self._mlp(hidden, "region.coord_decoder")
            y_center = logits.argmax() / logits.shape[-1]
            hidden = fed(self._encoded(y_center[None], "coord"))
            if not size:
                out.append({"x": x_center.item(), "y": y_center.item()})
                continue
            w, h = 2.0 ** (self._mlp(hidden, "region.size_decoder").view(2, -1).argmax(-1) / 1023.0 * 10.0 - 10.0)
            hidden = fed(self._encoded(torch.stack([w, h]), "size"))
            out.append({
                "x_min": x_center.item() - w.item() / 2, "y_min": y_center.item() - h.item() / 2,
                "x_max": x_center.item() + w.item() / 2, "y_max": y_center.item() + h.item() / 2,
            })  # fmt: skip
        return out

    def _encoded(self, values: torch.Tensor, name: str) -> torch.Tensor:
        """encode_coordinate and encode_size there, with their fourier_features."""
        f = 2 * math.pi * values.double() @ self.w[f"region.{name}_features"]
        return self._linear(torch.cat([f.cos(), f.sin()], dim=-1), f"region.{name}_encoder")

    def generate(self, *, input_ids: torch.Tensor, max_new_tokens: int, **inputs: Any) -> Any:
        pictures = {name: inputs[name] for name in ("pixel_values", "tiling") if name in inputs}
        found = []
        for _ in range(max_new_tokens):
            found.append(self(input_ids, **pictures).logits[:, -1])
            input_ids = torch.cat([input_ids, found[-1].argmax(-1, keepdim=True)], dim=1)
        return SimpleNamespace(sequences=input_ids, logits=tuple(found))

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def _mlp(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return self._linear(functional.gelu(self._linear(x, f"{name}.fc1"), approximate="tanh"), f"{name}.fc2")

    @staticmethod
    def _heads(x: torch.Tensor, count: int) -> torch.Tensor:
        return x.unflatten(-1, (count, -1)).transpose(-2, -3)

    @staticmethod
    def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        scores = scores if seen is None else scores.masked_fill(~seen, -math.inf)
        return (scores.softmax(-1) @ v).transpose(-2, -3).flatten(-2)

    @staticmethod
    def _turned(x: torch.Tensor) -> torch.Tensor:
        """The first half of each head, as complex numbers of its two halves."""
        turning = x.shape[-1] // 2
        half = turning // 2
        angles = torch.arange(x.shape[-2])[:, None] / 10000 ** (torch.arange(half).double() / half)
        turned = torch.complex(x[..., :half], x[..., half:turning]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([turned.real, turned.imag, x[..., turning:]], dim=-1)


class Processor:
    """What the published code does to a picture and a question, in the interface of transformers' processors."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.image_token_id = tokenizer, BEGIN

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        """The question alone: ids are put together in the call."""
        ((text,),) = ([part["text"] for part in m["content"] if part["type"] == "text"] for m in messages)
        return str(text)

    def __call__(
        self, *, text: str, images: Sequence[Image.Image] | None, return_tensors: str, task: str = "query"
    ) -> BatchFeature:
        """task: "detect" and "point" have a space before the text, and one token behind it."""
        query = task == "query"
        asked = self._ids(text if query else " " + text)
        picture = [BEGIN] * GRID**2 if images else []
        ids = [BEGIN, *picture, TASK, *self._ids(task), ASKED, *asked, *[ANSWER] * (2 if query else 1)]
        data: dict[str, Any] = {"input_ids": torch.tensor([ids])}
        if images:
            (image,) = images
            squares, tiling = crops(image)
            pixels = torch.from_numpy(squares.transpose(0, 3, 1, 2).astype(np.float32))
            data |= {"pixel_values": pixels.div(255).sub(0.5).div(0.5), "tiling": torch.tensor(tiling)}
        return BatchFeature(data)

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found


def load_processor(folder: Path) -> Processor:
    return Processor(PreTrainedTokenizerFast.from_pretrained(folder))


def tiling(height: int, width: int, step: int, most: int) -> tuple[int, int]:
    """select_tiling there."""
    if min(height, width) <= step:
        return 1, 1
    least = -(-height // step), -(-width // step)
    if least[0] * least[1] > most:
        ratio = math.sqrt(most / (least[0] * least[1]))
        return max(1, int(least[0] * ratio)), max(1, int(least[1] * ratio))
    rows = max(int(math.sqrt(most * height / width)), least[0])
    cols = max(int(math.sqrt(most * width / height)), least[1])
    if rows * cols > most and cols > rows:
        cols = most // rows
    elif rows * cols > most:
        rows = most // cols
    return max(1, rows), max(1, cols)


def crops(
    image: Image.Image, side: int = SIDE, margin: int = MARGIN * PATCH, most: int = CROPS
) -> tuple[np.ndarray[Any, Any], tuple[int, int]]:
    """overlap_crop_image there: uint8 (1 + crops, S, S, 3), the whole picture first, and rows and columns of crops."""
    step = side - 2 * margin
    rows, cols = tiling(image.height - 2 * margin, image.width - 2 * margin, step, most)
    lanczos = Image.Resampling.LANCZOS
    canvas = np.asarray(image.resize((cols * step + 2 * margin, rows * step + 2 * margin), lanczos))
    found = [np.asarray(image.resize((side, side), lanczos))]
    for y in range(0, rows * step, step):
        found += [canvas[y : y + side, x : x + side] for x in range(0, cols * step, step)]
    return np.stack(found), (rows, cols)


def sheet(squares: np.ndarray[Any, Any], tiling: Sequence[int], empty: float = 0) -> np.ndarray[Any, Any]:
    """Squares (n, H, W, C) as one: the whole picture in a row of its own, its crops below."""
    (rows, cols), (_, side, _, channels) = tiling, squares.shape
    made = np.full((rows + 1, side, cols, side, channels), empty, squares.dtype)
    made[0, :, 0] = squares[0]
    made[1:] = squares[1:].reshape(rows, cols, side, side, channels).transpose(0, 2, 1, 3, 4)
    return made.reshape((rows + 1) * side, cols * side, channels)


def views(inputs: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    """The sheet, normalized (3, H, W)."""
    squares = inputs["pixel_values"].transpose(0, 2, 3, 1)
    return [sheet(squares, inputs["tiling"].tolist(), -1.0).transpose(2, 0, 1)]
