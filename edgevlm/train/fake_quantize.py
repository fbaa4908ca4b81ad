"""Training through the quantizer of the export, so that training sees the weights that ship.

`round_weight` is edgevlm.export.quantize.round in torch, equal bit for bit (a property test holds this). The backward
pass ignores the rounding: the straight-through estimator (Bengio et al. 2013, arXiv 1308.3432).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevlm.bundle.qtensor import BLOCK
from edgevlm.checkpoint.families.tensors import MappedWeights
from edgevlm.errors import EdgeVLMError
from edgevlm.export.quantize.recipe import Recipe
from edgevlm.models.model import ModelSpec

TRAINED = ("fp16", "int8", "int4")


def round_weight(weight: Tensor, kind: str) -> Tensor:
    """A weight (N, K), float32, as `kind` ("fp16", "int8" or "int4") holds it: quantize(...).dequantize()."""
    if kind == "fp16":
        return weight.half().float()
    return _int8(weight) if kind == "int8" else _int4(weight)


def _int8(weight: Tensor) -> Tensor:
    scale = (weight.abs().amax(1, keepdim=True) / 127).half().float()
    codes = torch.clamp(torch.round(weight * _reciprocal(scale)), -127, 127)
    return codes * scale


def _int4(weight: Tensor) -> Tensor:
    rows, columns = weight.shape
    blocks = weight.reshape(rows, columns // BLOCK, BLOCK)
    peak = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))
    scale = peak / -8
    shifted = blocks * _reciprocal(scale) + 8.5
    codes = torch.clamp(torch.trunc(shifted), 0, 15) - 8
    return (codes * scale.half().float()).reshape(rows, columns)


def _reciprocal(scale: Tensor) -> Tensor:
    inverse = 1 / scale
    return torch.where(inverse.isinf(), 0.0, inverse)  # for a scale that is zero, or underflows to zero in fp16


class StraightThrough(torch.autograd.Function):
    """round_weight in the forward pass, the identity in the backward pass."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, kind: str) -> Tensor:
        return round_weight(weight, kind)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def train_through(model: nn.Module, spec: ModelSpec, weights: MappedWeights, recipe: Recipe) -> dict[str, str]:
    """Make every matrix of `model` that `recipe` quantizes compute with its rounded weight; the kinds by name.

    The parameters stay what they are, so checkpoints and saving see no difference.
    """
    kinds = {}
    for name in weights.names():
        kind = recipe.form(name).kind if weights.is_linear(name) else "fp32"
        if kind == "fp32":
            continue
        if kind not in TRAINED:
            raise EdgeVLMError(f"Training through {kind} is not available: choose from {', '.join(TRAINED)}.")
        kinds[name] = kind
        patch(_module(model, weights.stored_names(name)[0].removesuffix(".weight")), kind)
    if spec.decoder.tie_embeddings:
        patch(model.get_submodule("lm_head"), kinds["decoder.embed.weight"])
    return kinds


def patch(module: nn.Module, kind: str) -> None:
    """Let a Linear or an Embedding compute with its rounded weight."""
    forward: Callable[[Tensor], Tensor]
    if isinstance(module, nn.Linear):
        linear = module

        def forward(x: Tensor) -> Tensor:
            return F.linear(x, StraightThrough.apply(linear.weight, kind), linear.bias)  # type: ignore[no-untyped-call]

    elif isinstance(module, nn.Embedding):
        table = module

        def forward(x: Tensor) -> Tensor:
            return F.embedding(x, StraightThrough.apply(table.weight, kind))  # type: ignore[no-untyped-call]

    else:
        raise EdgeVLMError(f"A layer of the type {type(module).__name__} cannot be trained quantized: leave it fp32.")
    module.forward = forward  # type: ignore[method-assign, assignment]


def _module(model: nn.Module, name: str) -> nn.Module:
    """Old files leave "model." out of their tensors' names."""
    for path in (name, f"model.{name}"):
        try:
            return model.get_submodule(path)
        except AttributeError:
            continue
    raise EdgeVLMError(f"The model has no layer '{name}' to train quantized: save it again with transformers 5.")
