"""FastVLM: timm's FastViT in its folded form, after its published definition (arXiv 2303.14189, timm's fastvit.py).

timm itself needs torchvision, which the tests do without.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BatchFeature,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    GenerationConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.fast_vlm import modeling_fast_vlm

from tiny import tokenizer as tokenizers
from tiny.common import padded, randomize, renamed, write_json, write_processor, write_tensors, write_tokenizer

Layout = Literal["hub", "saved", "memory", "own"]
SIZE, TOKENS = 128, 4
ENDS, _TOWER = "<|endoftext|>", "model.vision_tower.vision_tower.model."
LAYERS, DIMS = [1, 2, 1, 2, 1], [16, 16, 32, 64, 64]
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n'}}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{# Render all text next #}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}{{'<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _conv(ins: int, outs: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(ins, outs, kernel, stride, kernel // 2, groups=groups, bias=bias)


class Gate(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, width // 16, 1), nn.Conv2d(width // 16, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Folded(nn.Module):
    """A convolution that was branches, then a gate and GELU where there are such."""

    def __init__(self, conv: nn.Conv2d, *, act: bool = True, gate: bool = False) -> None:
        super().__init__()
        self.reparam_conv, self.act = conv, act
        if gate:
            self.se = Gate(conv.out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.reparam_conv(x)
        x = self.se(x) if hasattr(self, "se") else x
        return nn.functional.gelu(x) if self.act else x


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Module()
        self.conv.conv, self.conv.bn = _conv(width, width, 7, groups=width, bias=False), nn.BatchNorm2d(width)
        self.fc1, self.fc2 = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(4 * width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(self.conv.bn(self.conv.conv(x)))))


class Mixer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.token_mixer = Folded(_conv(width, width, 3, groups=width), act=False)
        self.mlp, self.layer_scale = Mlp(width), Scale(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.token_mixer(x)
        return x + self.layer_scale(self.mlp(x))


class Norm2d(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        parts = self.qkv(x.flatten(2).transpose(1, 2)).reshape(b, h * w, 3, c // 32, 32).permute(2, 0, 3, 1, 4)
        out = nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(b, h * w, c)
        return self.proj(out).transpose(1, 2).reshape(b, c, h, w)


class Attending(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.token_mixer, self.layer_scale_1 = Norm2d(width, eps=1e-5), Attention(width), Scale(width)
        self.mlp, self.layer_scale_2 = Mlp(width), Scale(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.layer_scale_1(self.token_mixer(self.norm(x)))
        return x + self.layer_scale_2(self.mlp(x))


class Stage(nn.Module):
    def __init__(self, before: int, width: int, depth: int, *, first: bool, attends: bool) -> None:
        super().__init__()
        if not first:
            self.downsample = nn.Module()
            self.downsample.proj = nn.Sequential(
                Folded(_conv(before, width, 7, 2, groups=before)), Folded(_conv(width, width, 1))
            )
        if attends:
            self.pos_emb = Folded(_conv(width, width, 7, groups=width), act=False)
        self.blocks = nn.Sequential(*((Attending if attends else Mixer)(width) for _ in range(depth)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.downsample.proj(x) if hasattr(self, "downsample") else x
        x = self.pos_emb(x) if hasattr(self, "pos_emb") else x
        return self.blocks(x)


class FastVit(nn.Module):
    def __init__(self, layers: Sequence[int], dims: Sequence[int]) -> None:
        super().__init__()
        first, last = dims[0], dims[-1]
        stem = (_conv(3, first, 3, 2), _conv(first, first, 3, 2, groups=first), _conv(first, first, 1))
        self.stem = nn.Sequential(*map(Folded, stem))
        before = [first, *dims[:-1]]
        self.stages = nn.Sequential(*(
            Stage(before[i], dims[i], layers[i], first=i == 0, attends=i >= len(dims) - 2) for i in range(len(dims))
        ))  # fmt: skip
        self.final_conv = Folded(_conv(last, 2 * last, 3, groups=last), gate=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.final_conv(self.stages(self.stem(x)))


class Wrapper(nn.Module):
    """As transformers' TimmWrapperModel: the tower under the name `timm_model`."""

    def __init__(self) -> None:
        super().__init__()
        self.timm_model = FastVit(LAYERS, DIMS)

    def forward(self, pixel_values: torch.Tensor, **options: Any) -> Any:
        return BaseModelOutputWithPooling(last_hidden_state=self.timm_model(pixel_values))


def build(folder: Path, *, seed: int = 0, layout: Layout = "hub", tie: bool = False) -> Any:
    """Write a tiny FastVLM into `folder`; returns its model in float32.

    layout: "hub" and "memory": the names of the conversion, `model.vision_tower.timm_model.*`, and `lm_head.*`;
    "saved": what transformers 5 saves. "own": the authors' (apple/ml-fastvlm), in which a picture has no token; it
    stands for the token that ends a text.
    """
    tokenizer = tokenizers.qwen((*tokenizers.QWEN_SPECIALS, *(() if layout == "own" else ("<image>",))))
    ids = tokenizers.added_ids(tokenizer)
    ids.setdefault("<image>", ids[ENDS])
    text = {
        "model_type": "qwen2",
        "hidden_size": 128,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "use_sliding_window": False,
        "vocab_size": padded(tokenizer.get_vocab_size()),
        "tie_word_embeddings": tie,
    }
    vision = {
        "model_type": "timm_wrapper",
        "architecture": "fastvit_mci3",
        "do_pooling": True,
        "global_pool": "avg",
        "hidden_size": 2 * DIMS[-1],
        "num_classes": 0,
        "label_names": [],
        "model_args": {"inference_mode": True, "layers": LAYERS, "embed_dims": DIMS},
    }
    settings = {
        "image_seq_length": TOKENS,
        "image_token_index": ids["<image>"],
        "tie_word_embeddings": tie,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    config = FastVlmConfig(text_config=dict(text), vision_config=dict(vision), **settings)
    real = modeling_fast_vlm.AutoModel.from_config

    def made(part: Any, **options: Any) -> Any:
        return Wrapper() if part.model_type == "timm_wrapper" else real(part, **options)

    with mock.patch.object(modeling_fast_vlm.AutoModel, "from_config", made):
        model = FastVlmForConditionalGeneration(config).eval()
    randomize(model, seed, list(ids.values()))
    _randomize_rest(model, seed)
    model.generation_config = GenerationConfig(eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"])
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "own":
        _write_own(folder, model, tokenizer, text)
        return model
    write_tensors(folder, model, renamed())
    published = {"architectures": ["FastVlmForConditionalGeneration"], "model_type": "fast_vlm", "dtype": "float32"}
    write_json(folder / "config.json", published | {"text_config": text, "vision_config": vision} | settings)
    model.generation_config.save_pretrained(folder)
    write_tokenizer(
        folder, tokenizer, kind="Qwen2Tokenizer", published=layout == "hub", template=None, eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )  # fmt: skip
    if layout == "hub":
        usual = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3}
        said = {"image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor"}
        write_json(folder / "preprocessor_config.json", _settings() | usual | said | {"rescale_factor": 1 / 255})
        write_json(folder / "processor_config.json", {"processor_class": "LlavaProcessor", **_LENGTH})
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    else:
        write_processor(folder, "LlavaProcessor", CLIPImageProcessorPil(**_settings()), CHAT_TEMPLATE, **_LENGTH)
    return model


@torch.no_grad()
def _randomize_rest(model: Any, seed: int) -> None:
    """Norms, layer scales and batch statistics, whose names `randomize` does not know."""
    random = torch.Generator().manual_seed(seed + 1)
    for name, tensor in model.model.vision_tower.state_dict().items():
        noise = torch.randn(tensor.shape, generator=random) if tensor.is_floating_point() else None
        if name.endswith("running_var"):
            tensor.copy_(0.5 + noise.abs())
        elif name.endswith("running_mean"):
            tensor.copy_(0.3 * noise)
        elif name.endswith(("gamma", "bn.weight")):
            tensor.copy_(0.7 + 0.2 * noise)


def _write_own(folder: Path, model: Any, tokenizer: Any, text: dict[str, Any]) -> None:
    """Names of mobileclip/mci.py there, whose stages and steps between them are one list; the head is left over."""
    write_tensors(folder, model, _own_name)
    path = folder / "model.safetensors"
    tensors = load_file(path) | {f"{_TOWER}head.proj": torch.zeros(2 * DIMS[-1], 8)}
    save_file(tensors, path, metadata={"format": "pt"})
    settings = {
        "architectures": ["LlavaQwen2ForCausalLM"], "image_aspect_ratio": "pad", "mm_hidden_size": 2 * DIMS[-1],
        "mm_patch_merge_type": "flat", "mm_projector_type": "mlp2x_gelu", "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False, "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
        "mm_vision_tower": f"mobileclip_l_{SIZE}", "unfreeze_mm_vision_tower": True, "use_mm_proj": True,
    }  # fmt: skip
    write_json(folder / "config.json", text | settings | {"model_type": "llava_qwen2", "torch_dtype": "float32"})
    model.generation_config.save_pretrained(folder)
    ends = {"eos_token": "<|im_end|>", "pad_token": ENDS}
    write_tokenizer(folder, tokenizer, kind="Qwen2Tokenizer", published=True, template=None, **ends)


OWN_NAMES = {
    r"^stem\.": "patch_embed.", r"^final_conv\.": "conv_exp.", r"se\.fc1": "se.reduce", r"se\.fc2": "se.expand",
    r"\.gamma$": "", r"\.mlp\.": ".convffn.", r"proj\.0\.reparam_conv": "proj.0.lkb_reparam",
}  # fmt: skip


def _own_name(name: str) -> str:
    name = re.sub(r"^model\.language_model\.", "model.", name)
    name = re.sub(
        r"^model\.multi_modal_projector\.linear_([12])", lambda m: f"model.mm_projector.{2 * int(m[1]) - 2}", name
    )
    tower = "model.vision_tower.timm_model."
    if not name.startswith(tower):
        return name
    rest = name.removeprefix(tower)
    rest = re.sub(r"^stages\.(\d)\.(.*)", lambda m: _in_one_list(int(m[1]), m[2]), rest)
    for theirs, own in OWN_NAMES.items():
        rest = re.sub(theirs, own, rest)
    return _TOWER + rest


def _in_one_list(stage: int, rest: str) -> str:
    first = [0, 1, 3, 5, 8][stage]  # where the step before a stage stands, or its first blocks
    positions = stage > 2
    if rest.startswith("downsample."):
        return f"network.{first}.{rest.removeprefix('downsample.')}"
    if rest.startswith("pos_emb."):
        return f"network.{first + 1}.{rest.removeprefix('pos_emb.')}"
    return f"network.{first + (stage > 0) + positions}.{rest.removeprefix('blocks.')}"


class OwnProcessor:
    """The authors' predict.py, in the interface of transformers' processors: conversation qwen_2, one picture."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.image_token_id = tokenizer.convert_tokens_to_ids(ENDS)

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        (message,) = messages
        kinds = [item["type"] for item in message["content"]]
        (question,) = (item["text"] for item in message["content"] if item["type"] == "text")
        said = ("<image>\n" if "image" in kinds else "") + question
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        return f"{system}<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"

    def __call__(self, *, text: str, images: Sequence[Image.Image] | None, return_tensors: str) -> BatchFeature:
        """tokenizer_image_token and process_images of llava/mm_utils.py there."""
        first, *rest = (self.tokenizer(part)["input_ids"] for part in text.split("<image>"))
        ids = [*first, *(token for part in rest for token in [self.image_token_id] * TOKENS + part)]
        data = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        if images:
            (image,) = images
            side = max(image.size)
            square = Image.new("RGB", (side, side))
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            data |= CLIPImageProcessorPil(**_settings())(square, return_tensors="pt")
        return BatchFeature(data)


def load_own_processor(folder: Path) -> OwnProcessor:
    return OwnProcessor(PreTrainedTokenizerFast.from_pretrained(folder))


_LENGTH = {"image_token": "<image>", "patch_size": 64, "vision_feature_select_strategy": "full"}


def _settings() -> dict[str, Any]:
    square = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    return square | {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}


def load_processor(folder: Path) -> Any:
    """transformers' processor with the Pillow image processor."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    images = CLIPImageProcessorPil(**_settings())
    return LlavaProcessor(images, tokenizer, chat_template=CHAT_TEMPLATE, num_additional_image_tokens=0, **_LENGTH)
