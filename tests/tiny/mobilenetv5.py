"""MobileNetV5's encoder `mobilenetv5_300m_enc`, after its published definition (timm 1.0.31's mobilenetv5.py).

timm itself needs torchvision, which the tests do without. Names of modules are timm's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

STAGES = [
    ["er_k3_s2_e4_c128", *["er_k3_s1_e4_c128"] * 2],
    ["uir_a3_k5_s2_e6_c256", *["uir_a5_k0_s1_e4_c256", "uir_a3_k0_s1_e4_c256"] * 2],
    [
        "uir_a5_k5_s2_e6_c640", *["uir_a5_k0_s1_e4_c640"] * 7, "uir_a0_k0_s1_e1_c640",
        *["mqa_k3_h12_v2_s1_d64_c640", "uir_a0_k0_s1_e2_c640"] * 14,
    ],
    ["uir_a5_k5_s2_e6_c1280", *["mqa_k3_h16_v1_s1_d96_c1280", "uir_a0_k0_s1_e2_c1280"] * 19],
]  # fmt: skip
FEATURES, OUTPUT_SIDE = 2048, 16


def round_channels(channels: float, multiplier: float) -> int:
    """timm's make_divisible by 8: to the nearest multiple, and up where that takes more than a tenth away."""
    wanted = channels * multiplier
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


class Conv2dSame(nn.Conv2d):
    """TensorFlow's padding: as few zeros as give ceil(side / stride) results, the odd one behind."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        zeros = []
        for side, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            zeros += [total // 2, total - total // 2]
        return super().forward(nn.functional.pad(x, zeros))


class RmsNorm2d(nn.Module):
    def __init__(self, width: int, *, act: bool = False) -> None:
        super().__init__()
        self.weight, self.act = nn.Parameter(torch.ones(width)), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6) * self.weight[:, None, None]
        return nn.functional.gelu(x, approximate="tanh") if self.act else x


class LayerScale2d(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma[:, None, None]


class ConvNormAct(nn.Module):
    def __init__(
        self, ins: int, outs: int, kernel: int = 1, stride: int = 1, groups: int = 1, bias: bool = False,
        act: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = Conv2dSame(ins, outs, kernel, stride, groups=groups, bias=bias)
        self.bn = RmsNorm2d(outs, act=act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x))


class EdgeResidual(nn.Module):
    def __init__(self, ins: int, outs: int, o: dict[str, int]) -> None:
        super().__init__()
        inner, self.skip = ins * o["e"], ins == outs and o["s"] == 1
        self.conv_exp = Conv2dSame(ins, inner, o["k"], o["s"], bias=False)
        self.bn1 = RmsNorm2d(inner, act=True)
        self.conv_pwl, self.bn2 = nn.Conv2d(inner, outs, 1, bias=False), RmsNorm2d(outs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv_pwl(self.bn1(self.conv_exp(x))))
        return x + y if self.skip else y


class UniversalInvertedResidual(nn.Module):
    def __init__(self, ins: int, outs: int, o: dict[str, int], *, skips: bool = True, scales: bool = True) -> None:
        super().__init__()
        inner, stride, self.skip = ins * o["e"], o["s"], skips and ins == outs and o["s"] == 1
        self.dw_start = self.dw_mid = self.layer_scale = nn.Identity()
        if o["a"]:
            self.dw_start = ConvNormAct(ins, ins, o["a"], 1 if o["k"] else stride, ins, act=False)
        self.pw_exp = ConvNormAct(ins, inner)
        if o["k"]:
            self.dw_mid = ConvNormAct(inner, inner, o["k"], stride, inner)
        self.pw_proj = ConvNormAct(inner, outs, act=False)
        if scales:
            self.layer_scale = LayerScale2d(outs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer_scale(self.pw_proj(self.dw_mid(self.pw_exp(self.dw_start(x)))))
        return x + y if self.skip else y


class MultiQueryAttention2d(nn.Module):
    """Query heads over one head of keys and values, which a depthwise convolution may make fewer."""

    def __init__(self, width: int, o: dict[str, int]) -> None:
        super().__init__()
        self.heads, self.size = o["h"], o["d"]
        self.query, self.key, self.value, self.output = (nn.Sequential() for _ in range(4))
        self.query.add_module("proj", nn.Conv2d(width, self.heads * self.size, 1, bias=False))
        for part in (self.key, self.value):
            if o["v"] > 1:
                part.add_module("down_conv", Conv2dSame(width, width, o["k"], o["v"], groups=width, bias=False))
                part.add_module("norm", RmsNorm2d(width))
            part.add_module("proj", nn.Conv2d(width, self.size, 1, bias=False))
        self.output.add_module("proj", nn.Conv2d(self.heads * self.size, width, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, _, h, w = x.shape
        q = self.query(x).reshape(b, self.heads, self.size, -1).transpose(2, 3)
        k, v = (part(x).flatten(2).transpose(1, 2)[:, None] for part in (self.key, self.value))
        out = ((q @ k.transpose(2, 3)) * self.size**-0.5).softmax(-1) @ v
        return self.output(out.transpose(2, 3).reshape(b, -1, h, w))


class MobileAttention(nn.Module):
    def __init__(self, width: int, o: dict[str, int]) -> None:
        super().__init__()
        self.norm, self.attn = RmsNorm2d(width), MultiQueryAttention2d(width, o)
        self.layer_scale = LayerScale2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layer_scale(self.attn(self.norm(x)))


class MultiScaleFusionAdapter(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        plain = {"a": 0, "k": 0, "s": 1, "e": 2}
        self.ffn = UniversalInvertedResidual(width, FEATURES, plain, skips=False, scales=False)
        self.norm = RmsNorm2d(FEATURES)

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        coarse = nn.functional.interpolate(coarse, size=fine.shape[2:], mode="nearest")
        x = self.ffn(torch.cat([fine, coarse], 1))
        return self.norm(nn.functional.avg_pool2d(x, x.shape[2] // OUTPUT_SIDE))


class MobileNetV5Encoder(nn.Module):
    """Pixels (B, 3, S, S) to (B, 2048, 16, 16); S is a multiple of 256."""

    def __init__(self, channel_multiplier: float = 1.0) -> None:
        super().__init__()
        width = 64 if channel_multiplier < 1 else round_channels(64, channel_multiplier)
        self.conv_stem = ConvNormAct(3, width, 3, 2, bias=True)
        stages, widths = [], []
        for definitions in STAGES:
            blocks: list[nn.Module] = []
            for kind, *rest in (definition.split("_") for definition in definitions):
                o = {option[0]: int(option[1:]) for option in rest}
                outs = round_channels(o["c"], channel_multiplier)
                if kind == "mqa":
                    blocks.append(MobileAttention(width, o))
                else:
                    blocks.append({"er": EdgeResidual, "uir": UniversalInvertedResidual}[kind](width, outs, o))
                width = outs
            stages.append(nn.Sequential(*blocks))
            widths.append(width)
        self.blocks = nn.Sequential(*stages)
        self.msfa = MultiScaleFusionAdapter(sum(widths[-2:]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_stem(x)
        *stages, last = self.blocks
        for stage in stages:
            x = stage(x)
        return self.msfa(x, last(x))


class Wrapper(nn.Module):
    """As transformers' TimmWrapperModel: the tower under the name `timm_model`."""

    def __init__(self, channel_multiplier: float = 1.0) -> None:
        super().__init__()
        self.timm_model = MobileNetV5Encoder(channel_multiplier)

    def forward(self, pixel_values: torch.Tensor, **options: Any) -> Any:
        return BaseModelOutputWithPooling(last_hidden_state=self.timm_model(pixel_values))


@torch.no_grad()
def randomize_tower(tower: nn.Module, seed: int) -> None:
    """Fill every parameter so that each part matters: norms and layer scales near one, maps that keep sizes."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in tower.named_parameters():
        noise = torch.randn(parameter.shape, generator=random)
        if name.endswith("gamma"):
            parameter.copy_(0.7 + 0.2 * noise)
        elif name.endswith("bias"):
            parameter.copy_(0.1 * noise)
        elif parameter.ndim == 1:
            parameter.copy_(1 + 0.2 * noise)
        else:
            gain = 1.7 if "query" in name or "key.proj" in name else 1.0  # heads that look at something
            parameter.copy_(gain / parameter[0].numel() ** 0.5 * noise)
